"""Matching signals with triggers, and the problems reported for invalid campaign files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import SettingsError
from streams.campaigns.triggers import Campaign, Consent, Signal, event_types, load_campaigns, matches

SHIPPED = Path(__file__).parents[3] / "campaigns"
GOOD = """
name: welcome
trigger:
  event: lead_created
step:
  subject: Welcome
  template: welcome.html.j2
"""


def folder(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "welcome.html.j2").write_text("<p>Welcome</p>", "utf-8")
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text, "utf-8")
    return tmp_path


def campaign(where: dict[str, Any] | None = None, event: str = "form_submitted") -> Campaign:
    return Campaign.model_validate(
        {
            "name": "c",
            "trigger": {"event": event, "where": where or {}},
            "step": {"subject": "s", "template": "welcome.html.j2"},
        }
    )


def signal(
    event: dict[str, Any] | None = None, lead: dict[str, Any] | None = None, kind: str = "form_submitted"
) -> Signal:
    return Signal("acme", "e-1", kind, event or {}, lead or {})


def test_the_shipped_campaign_is_triggered_by_demo_requests_only() -> None:
    campaigns = load_campaigns(SHIPPED)
    assert event_types(campaigns.values()) >= {"form_submitted"}
    demo = campaigns["demo_request"]
    assert matches(demo, signal({"form_id": "demo"}))
    assert not matches(demo, signal({"form_id": "newsletter"}))
    assert not matches(demo, signal({}))
    assert not matches(demo, signal({"form_id": "demo"}, kind="lead_created"))


def test_a_missing_folder_has_no_campaigns(tmp_path: Path) -> None:
    assert load_campaigns(tmp_path / "missing") == {}
    assert event_types([]) == frozenset()


def test_all_problems_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    where = "trigger: {event: form_submitted, where: {%s}}\n"
    step = "step: {subject: s, template: welcome.html.j2}\n"
    files = {
        "a": "name: A B\n" + where % "event.form: demo" + step,
        "b": "name: b\ntrigger: {event: form_submited}\n" + step,
        "c": "name: [\n",
        "d": "just words",
        "e": "name: e\n" + where % "form_id: demo" + step + "onse_per: lead\n",
        "f": "name: f\n" + where % "lead.custom: x, event.form_id: yes, lead.nose: long" + step,
        "g": GOOD.replace("name: welcome", "name: g").replace("welcome.html", "missing.html"),
        "h": GOOD.replace("name: welcome", "name: welcome\nonce_per: week"),
        "i": GOOD,
        "j": GOOD,
        "k": GOOD.replace("name: welcome", "name: k").replace("subject: Welcome", "channel: pigeon"),
        "l": GOOD.replace("name: welcome", "name: l").replace("welcome.html.j2", "../../etc/passwd.j2"),
        "m": GOOD.replace("name: welcome", "name: m").replace("subject: Welcome", 'subject: W\n  from: "a@b.c, d@e.f"'),
        "n": GOOD.replace("name: welcome", "name: n").replace(
            "subject: Welcome", 'subject: W\n  from: "a@b.c\\nBcc: d@e.f"'
        ),
    }
    with pytest.raises(SettingsError) as caught:
        load_campaigns(folder(tmp_path, **files))
    lines = str(caught.value).splitlines()

    def reported(name: str, *texts: str) -> bool:
        file = str(tmp_path / f"{name}.yaml")
        return any(file in line and all(text in line for text in texts) for line in lines)

    assert reported("a", ": name:")
    assert reported("a", "event.form", "no field 'form'")
    assert reported("b", ": trigger.event:", "form_submited", "form_submitted")
    assert reported("c", "not valid YAML")
    assert reported("d", ": file:")
    assert reported("e", ": onse_per:")
    assert reported("e", "must start with event. or lead.")
    assert reported("f", "lead.custom: is a map")
    assert reported("f", "quotation marks", "True")
    assert reported("f", "no field 'nose'")
    assert reported("g", "step.template", "missing.html.j2")
    assert reported("h", ": once_per:")
    assert reported("j", "another file already has a campaign 'welcome'")
    assert reported("k", "no channel 'pigeon'", "email")
    assert reported("l", ": step.template:")
    assert reported("m", ": step.from:")
    assert reported("n", ": step.from:")
    assert not reported("i", "")


def test_conditions_can_use_fields_and_map_keys_of_event_and_lead() -> None:
    tested = campaign(
        {"event.form_id": ["demo", "trial"], "lead.country": "GB", "lead.employees": 42, "event.answers.a.b": "yes"}
    )
    event = {"form_id": "trial", "answers": {"a.b": "yes"}}
    lead = {"country": "GB", "employees": 42}
    assert matches(tested, signal(event, lead))
    for other in (
        signal(event | {"form_id": "x"}, lead),
        signal(event | {"answers": {}}, lead),
        signal(event, lead | {"employees": None}),
        signal(event, lead | {"employees": True}),
        signal(event, {}),
    ):
        assert not matches(tested, other)


_VALUES = st.one_of(st.none(), st.text(max_size=5), st.booleans(), st.integers(-2, 2), st.floats(allow_nan=False))


@given(values=st.lists(st.text(max_size=5), min_size=1, max_size=3), value=_VALUES, country=_VALUES)
def test_a_list_matches_exactly_its_values(values: list[str], value: Any, country: Any) -> None:
    matches_one = any(matches(campaign({"event.form_id": each}), signal({"form_id": value})) for each in values)
    assert matches(campaign({"event.form_id": values}), signal({"form_id": value})) is matches_one is (value in values)
    both = campaign({"event.form_id": values, "lead.country": "GB"})
    assert matches(both, signal({"form_id": value}, {"country": country})) is (value in values and country == "GB")


@pytest.mark.parametrize(
    ("required", "known", "allowed"),
    [
        (False, {}, True),
        (False, {"marketing": "granted"}, True),
        (False, {"marketing": "withdrawn"}, False),
        (False, {"sales": "withdrawn"}, True),
        (True, {}, False),
        (True, {"sales": "granted"}, False),
        (True, {"marketing": "granted"}, True),
        (True, {"marketing": "withdrawn"}, False),
    ],
)
def test_consent_allows_a_message(required: bool, known: dict[str, str], allowed: bool) -> None:
    assert Consent(required=required).allows(known) is allowed
