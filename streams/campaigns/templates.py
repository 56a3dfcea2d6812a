"""Renders messages from Jinja2 templates, with the values of the lead and of the event that triggered the campaign.

- ``lead`` has every field of schemas/lead.avsc, ``event`` every own field of the trigger's event type. An unknown field
  and a missing key of a map are the empty string. A name that the schema does not have is an error, which
  :func:`load_campaigns_and_templates` finds at start.
- Templates run in a sandbox. Values are escaped in HTML templates.
- A subject is one line of printable characters, so that no value can add a header to an e-mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.registry import registry
from streams.campaigns.triggers import Campaign, Signal, invalid_campaigns, read_campaigns

_MAX_SUBJECT = 500  # characters


class RenderError(Exception):
    """A template cannot be rendered with these values; the message contains none of them."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered message: ``subject`` is one line of plain text; ``body`` is HTML if the template is ``*.html.j2``."""

    subject: str
    body: str


class _Map(dict[str, Any]):
    """A map of the lead or the event in which a missing key is the empty string."""

    def __missing__(self, _: str) -> str:
        return ""


class Templates:
    """The templates of one campaigns folder. A file is read once, when it is first needed."""

    def __init__(self, folder: Path) -> None:
        loader = FileSystemLoader(folder / "templates")
        settings: dict[str, Any] = {"undefined": StrictUndefined, "auto_reload": False}
        self._html = ImmutableSandboxedEnvironment(loader=loader, autoescape=True, **settings)
        self._text = ImmutableSandboxedEnvironment(loader=loader, autoescape=False, **settings)  # subjects

    def render(self, campaign: Campaign, signal: Signal) -> Rendered:
        """Return the message of ``campaign`` for ``signal``.

        Raises:
            RenderError: the template has a syntax error, uses a name that the schema does not have, or failed with the
                values of this signal.

        """
        names = {"lead": _values("lead", signal.lead), "event": _values(signal.event_type, signal.event)}
        environment = self._html if campaign.step.template.endswith(".html.j2") else self._text
        try:
            subject = self._text.from_string(campaign.step.subject).render(names)
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            raise RenderError(f"step.subject: {_reason(error)}") from None
        try:
            body = environment.get_template(campaign.step.template).render(names)
        except Exception as error:  # noqa: BLE001
            raise RenderError(f"templates/{campaign.step.template}: {_reason(error)}") from None
        return Rendered(one_line(subject), body)


def one_line(text: str) -> str:
    """Return ``text`` as one line of at most 500 printable characters."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:_MAX_SUBJECT]


def example(campaign: Campaign) -> Signal:
    """Return a signal for ``campaign`` with the example values of the schemas."""
    kind = registry().events[campaign.trigger.event]
    record = kind.example
    own = {name: value for name, value in record.items() if name not in ("envelope", "identifiers")}
    lead = {target: own[name] for name, target in kind.lead_fields.items() if name in own}
    lead |= {name: value for name, value in record["identifiers"].items() if name != "anonymous_id"}
    lead_created = registry().events["lead_created"]
    defaults = {target: lead_created.example[name] for name, target in lead_created.lead_fields.items()}
    lead = defaults | lead | {"lead_id": "00000000-0000-7000-8000-000000000000", "tenant": "acme", "version": 1}
    return Signal("acme", "example", kind.name, own, lead | {"consent": {campaign.consent.purpose: "granted"}})


def load_campaigns_and_templates(folder: Path) -> tuple[dict[str, Campaign], Templates]:
    """Return the campaigns of ``folder`` by name, and their templates.

    Guarantees: each template renders for an example lead and for a lead without values.

    Raises:
        SettingsError: a campaign file or a template is invalid. The message lists every problem.

    """
    campaigns, problems = read_campaigns(folder)
    templates = Templates(folder)
    for campaign in campaigns.values():
        if not (folder / "templates" / campaign.step.template).is_file():
            continue  # read_campaigns has reported it
        signal = example(campaign)
        empty = Signal(signal.tenant, signal.event_id, signal.event_type, {}, {})
        for name, values in (("an example lead", signal), ("a lead without values", empty)):
            try:
                templates.render(campaign, values)
            except RenderError as error:
                problems.append(f"{folder}: campaign {campaign.name}: {error} (rendered for {name})")
                break
    if problems:
        raise invalid_campaigns(problems)
    return campaigns, templates


def _values(name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return every own field of the schema ``name`` with its value in ``known``, or "" when it has none."""
    values: dict[str, Any] = {}
    for field in registry().types[name].source["fields"]:
        if field["name"] in ("envelope", "identifiers"):
            continue
        value = known.get(field["name"], field.get("default"))
        values[field["name"]] = _Map(value) if isinstance(value, Mapping) else "" if value is None else value
    return values


def _reason(error: Exception) -> str:
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, TemplateError):  # its message contains names and syntax, never values
        return str(error.message or type(error).__name__)
    return f"fails with {type(error).__name__}"
