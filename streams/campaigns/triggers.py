"""Campaigns as files: a folder of ``*.yaml``, each checked whole before anything runs.

``where`` maps a path (``event.<own field>``, ``lead.<field>``, a map's key after another dot) to the value it has to
have, or to a list of values of which it has to have one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from infra.settings import SettingsError
from schemas.registry import registry


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trigger(_Strict):
    """Which event starts the campaign."""

    event: str
    where: dict[str, str | int | float | bool | list[str]] = Field(default_factory=dict)

    @field_validator("event")
    @classmethod
    def _is_event(cls, name: str) -> str:
        if name not in registry().events:
            raise ValueError(f"no event type {name!r}; there are: {', '.join(registry().events)}")
        return name

    @field_validator("where")
    @classmethod
    def _has_paths(cls, where: dict[str, Any]) -> dict[str, Any]:
        wrong = [path for path in where if path.partition(".")[0] not in ("event", "lead") or "." not in path]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: a path starts with event. or lead.")
        return where


class Consent(_Strict):
    """Whose consent counts: a withdrawal of ``purpose`` always stops; ``required`` wants it granted."""

    purpose: str = "marketing"
    required: bool = True


class Step(_Strict):
    """What is sent."""

    channel: str = "email"
    subject: str = ""
    template: str


class Campaign(_Strict):
    """One campaign."""

    name: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    trigger: Trigger
    consent: Consent = Consent()
    once_per: Literal["lead", "event"] = "lead"
    step: Step


def load_campaigns(folder: Path) -> dict[str, Campaign]:
    """Read the campaigns of ``folder`` by name; a folder that does not exist holds none.

    Raises:
        SettingsError: naming every problem of every file, with file and path.

    """
    found: dict[str, Campaign] = {}
    wrong: list[str] = []
    for file in sorted(folder.glob("*.yaml")):
        try:
            campaign = Campaign.model_validate(yaml.safe_load(file.read_text("utf-8")))
        except ValidationError as error:
            wrong += [f"{file}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
            continue
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            wrong.append(f"{file}: not YAML: {error}")
            continue
        if campaign.name in found:
            wrong.append(f"{file}: name: another file has a campaign {campaign.name!r}")
        if not (folder / "templates" / campaign.step.template).is_file():
            wrong.append(f"{file}: step.template: there is no templates/{campaign.step.template}")
        found[campaign.name] = campaign
    if wrong:
        raise SettingsError("Wrong campaigns:\n  " + "\n  ".join(wrong))
    return found


def event_types(campaigns: Mapping[str, Campaign]) -> frozenset[str]:
    """Return the event types that some campaign listens to: intake signals these and no others."""
    return frozenset(campaign.trigger.event for campaign in campaigns.values())


def matching(campaigns: Iterable[Campaign], event_type: str, event: Any, lead: Mapping[str, Any]) -> list[Campaign]:
    """Return the campaigns whose trigger this event (its own fields) of this lead meets."""
    names = {"event": event, "lead": lead}
    return [
        campaign
        for campaign in campaigns
        if campaign.trigger.event == event_type
        and all(_meets(_at(names, path), wanted) for path, wanted in campaign.trigger.where.items())
    ]


def _at(names: Any, path: str) -> Any:
    for step in path.split("."):
        names = names.get(step) if isinstance(names, Mapping) else None
    return names


def _meets(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted
