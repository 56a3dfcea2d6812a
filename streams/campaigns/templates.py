"""What a message says: Jinja2 templates over the lead and the event that triggered it.

- ``lead`` has every field of schemas/lead.avsc, ``event`` every own field of the trigger's event type. What is not
  known is the empty string; a map's missing key too. A name that no schema has is an error, and :func:`check` finds it
  at start.
- Templates are sandboxed, and what they print is escaped for HTML. A subject is one line of printable characters
  whatever a lead's name holds, so no value can add a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.registry import registry
from streams.campaigns.triggers import Campaign, Signal, read_campaigns, wrong_campaigns

_LONGEST_SUBJECT = 500  # characters


class RenderError(Exception):
    """A template does not take these values; the message holds none of them."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A message: ``subject`` is plain text, one line; ``body`` is HTML where the channel wants it."""

    subject: str
    body: str


class _Map(dict[str, Any]):
    """A map of the lead or the event: a key that it does not have is the empty string."""

    def __missing__(self, _: str) -> str:
        return ""


class Templates:
    """The templates of one campaigns folder; files are read when first needed and kept."""

    def __init__(self, folder: Path) -> None:
        loader = FileSystemLoader(folder / "templates")
        settings: dict[str, Any] = {"undefined": StrictUndefined, "auto_reload": False}
        self._html = ImmutableSandboxedEnvironment(loader=loader, autoescape=True, **settings)
        self._text = ImmutableSandboxedEnvironment(loader=loader, autoescape=False, **settings)  # subjects

    def render(self, campaign: Campaign, signal: Signal) -> Rendered:
        """Return the campaign's message about ``signal``.

        Raises:
            RenderError: the template has an error, names what no schema has, or does not take these values.

        """
        names = {"lead": _values("lead", signal.lead), "event": _values(signal.event_type, signal.event)}
        environment = self._html if campaign.step.template.endswith(".html.j2") else self._text
        try:
            subject = self._text.from_string(campaign.step.subject).render(names)
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            raise RenderError(f"step.subject: {_why(error)}") from None
        try:
            body = environment.get_template(campaign.step.template).render(names)
        except Exception as error:  # noqa: BLE001
            raise RenderError(f"templates/{campaign.step.template}: {_why(error)}") from None
        return Rendered(one_line(subject), body)


def one_line(text: str) -> str:
    """Return ``text`` as one line of printable characters, cut to what a header may sensibly hold."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:_LONGEST_SUBJECT]


def example(campaign: Campaign) -> Signal:
    """Return a signal for ``campaign`` made of the schemas' own examples."""
    kind = registry().events[campaign.trigger.event]
    record = kind.example
    own = {name: value for name, value in record.items() if name not in ("envelope", "identifiers")}
    lead = {target: own[name] for name, target in kind.lead_fields.items() if name in own}
    lead |= {name: value for name, value in record["identifiers"].items() if name != "anonymous_id"}
    people = registry().events["lead_created"].example
    defaults = {target: people[name] for name, target in registry().events["lead_created"].lead_fields.items()}
    lead = defaults | lead | {"lead_id": "00000000-0000-7000-8000-000000000000", "tenant": "acme", "version": 1}
    return Signal("acme", "example", kind.name, own, lead | {"consent": {campaign.consent.purpose: "granted"}})


def load_campaigns_and_templates(folder: Path) -> tuple[dict[str, Campaign], Templates]:
    """Return the campaigns of ``folder`` and their templates, once each renders for its example and for an empty lead.

    Raises:
        SettingsError: naming every problem of every file, campaigns and templates, at once.

    """
    found, wrong = read_campaigns(folder)
    templates = Templates(folder)
    for campaign in found.values():
        if not (folder / "templates" / campaign.step.template).is_file():
            continue  # read_campaigns has reported it
        signal = example(campaign)
        nobody = Signal(signal.tenant, signal.event_id, signal.event_type, {}, {})
        for who, values in (("the example", signal), ("a lead with no field set", nobody)):
            try:
                templates.render(campaign, values)
            except RenderError as error:
                wrong.append(f"{folder}: campaign {campaign.name}: {error}, for {who}")
                break
    if wrong:
        raise wrong_campaigns(wrong)
    return found, templates


def _values(name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return every field of the schema ``name``; what is not known is "", and so is a map's missing key."""
    values: dict[str, Any] = {}
    for field in registry().types[name].source["fields"]:
        if field["name"] in ("envelope", "identifiers"):
            continue
        value = known.get(field["name"], field.get("default"))
        values[field["name"]] = _Map(value) if isinstance(value, Mapping) else "" if value is None else value
    return values


def _why(error: Exception) -> str:
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, TemplateError):  # about names and syntax, never about values
        return str(error.message or type(error).__name__)
    return f"does not take the values ({type(error).__name__})"
