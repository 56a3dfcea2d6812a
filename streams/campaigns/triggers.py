"""Campaigns as files: a folder of ``*.yaml``, each checked whole before anything runs, and what triggers them.

``where`` maps a path (``event.<own field>``, ``lead.<field>``, a map's key after another dot) to the value it has to
have, or to a list of values of which it has to have one. Paths are checked against the schemas, so that a slip of the
pen is an error at start and not a campaign that never runs.
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
    """Which event starts the campaign."""

    event: str
    where: dict[str, Value | list[Value]] = Field(default_factory=dict)

    @field_validator("event")
    @classmethod
    def _is_event(cls, name: str) -> str:
        if name not in registry().events:
            raise ValueError(f"no event type {name!r}; there are: {', '.join(registry().events)}")
        return name

    @model_validator(mode="after")
    def _has_paths(self) -> Trigger:
        if wrong := [why for path, value in self.where.items() if (why := _wrong(self.event, path, value))]:
            raise ValueError("; ".join(wrong))
        return self


class Consent(_Strict):
    """Whose consent counts: a withdrawal of ``purpose`` always stops; ``required`` wants it granted."""

    purpose: str = Field(default="marketing", min_length=1)
    required: bool = True

    def allows(self, known: Mapping[str, str]) -> bool:
        """Return whether a lead with the consent map ``known`` may be written to."""
        status = known.get(self.purpose, "")
        return status == "granted" if self.required else status != "withdrawn"


class Step(_Strict):
    """What is sent. ``channel`` is a file of sinks/messages/; an empty ``from``: the channel's own address."""

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
            raise ValueError("has to be one address, such as Example Ltd <hello@example.com>")
        return sender

    @field_validator("channel")
    @classmethod
    def _is_channel(cls, channel: str) -> str:
        if f"messages-{channel}" not in processes.load():
            there_are = [name.removeprefix("messages-") for name in processes.load() if name.startswith("messages-")]
            raise ValueError(f"no channel {channel!r}; there are: {', '.join(there_are)}")
        return channel

    @model_validator(mode="after")
    def _mail_is_whole(self) -> Step:
        if self.channel == "email" and not self.template.endswith(".html.j2"):
            raise ValueError("template: an e-mail's ends in .html.j2 (its plain text is made of it)")
        if self.channel == "email" and not self.subject:
            raise ValueError("subject: an e-mail has one")
        return self


class Campaign(_Strict):
    """One campaign."""

    name: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    trigger: Trigger
    consent: Consent = Consent()
    once_per: Literal["lead", "event"] = "lead"
    step: Step


@dataclass(frozen=True, slots=True)
class Signal:
    """An accepted event and the lead after it, as ``leads.campaign-signals`` says it; ``event``: its own fields."""

    tenant: str
    event_id: str
    event_type: str
    event: Mapping[str, Any]
    lead: Mapping[str, Any]


def signal_of(record: Mapping[str, Any]) -> Signal:
    """Return the signal of a ``campaign_signal`` record; ValueError when its properties or lead are no JSON object."""
    event = orjson.loads(record["properties"])
    if not isinstance(event, dict):
        raise ValueError("properties are no object")  # noqa: TRY004 - a wrong value, as wrong JSON is
    return Signal(record["tenant"], record["event_id"], record["event_type"], event, parse_lead(record["lead"]))


def read_campaigns(folder: Path) -> tuple[dict[str, Campaign], list[str]]:
    """Return the campaigns of ``folder`` by name, and every problem of every file; no such folder holds none."""
    found: dict[str, Campaign] = {}
    wrong: list[str] = []
    for file in sorted(folder.glob("*.yaml")):
        try:
            campaign = Campaign.model_validate(yaml.safe_load(file.read_text("utf-8")))
        except ValidationError as error:
            wrong += [f"{file}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
            continue
        except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
            wrong.append(f"{file}: not YAML: {' '.join(str(error).split())}")
            continue
        if campaign.name in found:
            wrong.append(f"{file}: name: another file has a campaign {campaign.name!r}")
        if not (folder / "templates" / campaign.step.template).is_file():
            wrong.append(f"{file}: step.template: there is no templates/{campaign.step.template}")
        found[campaign.name] = campaign
    return found, wrong


def load_campaigns(folder: Path) -> dict[str, Campaign]:
    """Return the campaigns of ``folder`` by name.

    Raises:
        SettingsError: naming every problem of every file, with file and path.

    """
    found, wrong = read_campaigns(folder)
    if wrong:
        raise wrong_campaigns(wrong)
    return found


def wrong_campaigns(wrong: list[str]) -> SettingsError:
    """Return the error that names all of ``wrong``."""
    return SettingsError("Wrong campaigns:\n  " + "\n  ".join(wrong))


def event_types(campaigns: Iterable[Campaign]) -> frozenset[str]:
    """Return the event types that some campaign listens to: intake signals these and no others."""
    return frozenset(campaign.trigger.event for campaign in campaigns)


def matches(campaign: Campaign, signal: Signal) -> bool:
    """Return whether ``signal`` meets the campaign's trigger: its event type, and every condition of ``where``."""
    return campaign.trigger.event == signal.event_type and all(
        _meets(_at({"event": signal.event, "lead": signal.lead}, path), wanted)
        for path, wanted in campaign.trigger.where.items()
    )


def _at(names: Any, path: str) -> Any:
    root, *steps = path.split(".", 2)  # a map's key may have dots of its own
    names = names[root]
    for step in steps:
        names = names.get(step) if isinstance(names, Mapping) else None
    return names


def _meets(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_meets(value, each) for each in wanted)
    # True == 1 in Python; a form's 1 is not a yes.
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _wrong(event: str, path: str, wanted: Any) -> str:
    """Return what is wrong with one condition, in words, or nothing."""
    root, *steps = path.split(".", 2)
    if root not in ("event", "lead") or not steps:
        return f"{path}: a path starts with event. or lead."
    fields = dict(_fields("lead" if root == "lead" else event))
    if steps[0] not in fields:
        return f"{path}: {'lead' if root == 'lead' else event} has no field {steps[0]!r}"
    kind = fields[steps[0]]
    if (kind == "map") != (len(steps) > 1):
        return f"{path}: is a map, name one of its keys" if kind == "map" else f"{path}: {steps[0]} is no map"
    text = [each for each in (wanted if isinstance(wanted, list) else [wanted]) if not isinstance(each, str)]
    if text and kind in ("map", "string"):
        return f"{path}: holds text, put {', '.join(map(str, text))} in quotation marks"
    return ""


def _fields(name: str) -> Iterator[tuple[str, str]]:
    """Yield the fields that conditions may speak of, and whether each is a string, a map or something else."""
    for field in registry().types[name].source["fields"]:
        kind = field["type"]
        if kind in ("leadstream.envelope", "leadstream.identifiers"):
            continue
        yield field["name"], kind if kind == "string" else kind["type"] if isinstance(kind, dict) else "other"
