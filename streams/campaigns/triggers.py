"""Reads campaign files (``*.yaml`` of one folder), validates them, and matches signals with their triggers.

``trigger.where`` maps a path to the value that it must have, or to a list of values of which it must have one. A path
is ``event.<own field>`` or ``lead.<field>``, followed by ``.<key>`` if the field is a map. Paths are checked against
the schemas: a misspelt path is an error at start, not a campaign that never runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.policy import default as mail_policy
from pathlib import Path
from typing import Any, Literal

import orjson
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from infra import processes
from infra.settings import SettingsError
from schemas.lead import parse_lead
from schemas.registry import registry

Value = str | bool | int | float


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Trigger(_Strict):
    """The event type that triggers the campaign, and conditions on the event and the lead."""

    event: str
    where: dict[str, Value | list[Value]] = Field(default_factory=dict)

    @field_validator("event")
    @classmethod
    def _is_event(cls, name: str) -> str:
        if name not in registry().events:
            raise ValueError(f"no event type {name!r}: use one of {', '.join(registry().events)}")
        return name

    @model_validator(mode="after")
    def _has_paths(self) -> Trigger:
        if problems := [text for path, value in self.where.items() if (text := _problem(self.event, path, value))]:
            raise ValueError("; ".join(problems))
        return self


class Consent(_Strict):
    """The consent for ``purpose`` that a message needs: granted, or with ``required: false`` not withdrawn.

    Checked before a message is requested. ``_PERMISSION`` in sinks/messages/messages_table.py checks again before it is
    sent, that the consent was not withdrawn since; see sinks/messages/delivery.py.
    """

    purpose: str = Field(default="marketing", min_length=1)
    required: bool = True

    def allows(self, known: Mapping[str, str]) -> bool:
        """Return whether a message to a lead with the consent map ``known`` is allowed."""
        status = known.get(self.purpose, "")
        return status == "granted" if self.required else status != "withdrawn"


class Step(_Strict):
    """The message. ``channel`` is the name of a file in sinks/messages/; no ``from`` means the channel's default."""

    channel: str = "email"
    sender: str = Field("", alias="from")
    subject: str = ""
    template: str = Field(pattern=r"^\w[\w.-]*\.j2$")

    @field_validator("sender")
    @classmethod
    def _is_address(cls, sender: str) -> str:
        if not sender:
            return sender
        header = mail_policy.header_factory("from", sender) if sender.isprintable() else None
        if header is None or header.defects or len(header.addresses) != 1 or not header.addresses[0].domain:
            raise ValueError("must be one address, such as Example Ltd <hello@example.com>")
        return sender

    @field_validator("channel")
    @classmethod
    def _is_channel(cls, channel: str) -> str:
        if f"messages-{channel}" not in processes.load_processes():
            there_are = [
                name.removeprefix("messages-") for name in processes.load_processes() if name.startswith("messages-")
            ]
            raise ValueError(f"no channel {channel!r}: use one of {', '.join(there_are)}")
        return channel

    @model_validator(mode="after")
    def _is_complete_email(self) -> Step:
        if self.channel == "email" and not self.template.endswith(".html.j2"):
            raise ValueError("template: must end in .html.j2 for the channel email (plain text is derived from HTML)")
        if self.channel == "email" and not self.subject:
            raise ValueError("subject: is required for the channel email")
        return self


class Campaign(_Strict):
    """One campaign file. ``once_per``: send at most one message for each lead, or for each event.

    ``max_age_hours``: an event that occurred earlier triggers nothing, such as an imported or a late one.
    """

    name: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    trigger: Trigger
    consent: Consent = Consent()
    once_per: Literal["lead", "event"] = "lead"
    max_age_hours: float = Field(24, gt=0, le=24 * 3660, strict=False)
    step: Step


@dataclass(frozen=True, slots=True)
class Signal:
    """A record of ``leads.campaign-signals``: ``event`` holds the event's fields, ``lead`` the lead after the event."""

    tenant: str
    event_id: str
    event_type: str
    event: Mapping[str, Any]
    lead: Mapping[str, Any]
    occurred_at: int = 0  # microseconds since 1970


def parse_signal(record: Mapping[str, Any]) -> Signal:
    """Return the signal of a ``campaign_signal`` record.

    Raises:
        ValueError: its properties or its lead are not a JSON object.

    """
    event = orjson.loads(record["properties"])
    if not isinstance(event, dict):
        raise ValueError("properties must be a JSON object")  # noqa: TRY004 - as for invalid JSON
    lead = parse_lead(record["lead"])
    return Signal(record["tenant"], record["event_id"], record["event_type"], event, lead, record["occurred_at"])


def read_campaigns(folder: Path) -> tuple[dict[str, Campaign], list[str]]:
    """Return the campaigns of ``folder`` by name, and the problems of all files. A missing folder has no campaigns."""
    found: dict[str, Campaign] = {}
    problems: list[str] = []
    for file in sorted(folder.glob("*.yaml")):
        try:
            campaign = Campaign.model_validate(yaml.safe_load(file.read_text("utf-8")))
        except ValidationError as error:
            problems += [f"{file}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
            continue
        except OSError as error:  # deleted since the folder was listed, not readable, or a folder
            problems.append(f"{file}: cannot be read: {error.strerror}")
            continue
        except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
            problems.append(f"{file}: not valid YAML: {' '.join(str(error).split())}")
            continue
        if campaign.name in found:
            problems.append(f"{file}: name: another file already has a campaign {campaign.name!r}")
        if not (folder / "templates" / campaign.step.template).is_file():
            problems.append(f"{file}: step.template: the file templates/{campaign.step.template} does not exist")
        found[campaign.name] = campaign
    return found, problems


def load_campaigns(folder: Path) -> dict[str, Campaign]:
    """Return the campaigns of ``folder`` by name.

    Raises:
        SettingsError: a file is invalid. The message lists every problem with its file and path.

    """
    found, problems = read_campaigns(folder)
    if problems:
        raise invalid_campaigns(problems)
    return found


def invalid_campaigns(problems: list[str]) -> SettingsError:
    """Return the error for invalid campaign files; its message lists ``problems``."""
    return SettingsError("Invalid campaigns:\n  " + "\n  ".join(problems))


def event_types(campaigns: Iterable[Campaign]) -> frozenset[str]:
    """Return the event types that trigger ``campaigns``. Intake emits signals for these types only."""
    return frozenset(campaign.trigger.event for campaign in campaigns)


def matches(campaign: Campaign, signal: Signal) -> bool:
    """Return whether ``signal`` has the event type of the campaign's trigger and meets all of its conditions."""
    return campaign.trigger.event == signal.event_type and all(
        _meets(_value_at({"event": signal.event, "lead": signal.lead}, path), expected)
        for path, expected in campaign.trigger.where.items()
    )


def _value_at(values: Any, path: str) -> Any:
    root, *keys = path.split(".", 2)  # at most three parts: the key of a map may contain dots
    values = values[root]
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _meets(value: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return any(_meets(value, each) for each in expected)
    # In Python True == 1, but a condition must tell them apart.
    return isinstance(value, bool) == isinstance(expected, bool) and bool(value == expected)


def _problem(event: str, path: str, expected: Any) -> str:
    """Return what is wrong with one condition of a trigger, or ""."""
    root, *keys = path.split(".", 2)
    if root not in ("event", "lead") or not keys:
        return f"{path}: must start with event. or lead."
    fields = dict(_fields("lead" if root == "lead" else event))
    if keys[0] not in fields:
        return f"{path}: {'lead' if root == 'lead' else event} has no field {keys[0]!r}"
    kind = fields[keys[0]]
    if (kind == "map") != (len(keys) > 1):
        return f"{path}: is a map: add one of its keys" if kind == "map" else f"{path}: {keys[0]} is not a map"
    not_text = [each for each in (expected if isinstance(expected, list) else [expected]) if not isinstance(each, str)]
    if not_text and kind in ("map", "string"):
        return f"{path}: the field is a string: put {', '.join(map(str, not_text))} in quotation marks"
    return ""


def _fields(name: str) -> Iterator[tuple[str, str]]:
    """Yield each field that a condition can use, and its kind: "string", "map", another type, or "other"."""
    for field in registry().types[name].source["fields"]:
        kind = field["type"]
        if kind in ("leadstream.envelope", "leadstream.identifiers"):
            continue
        yield field["name"], kind if kind == "string" else kind["type"] if isinstance(kind, dict) else "other"
