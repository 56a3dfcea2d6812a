"""Rendering of messages, also with values of a lead that try to break the message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.settings import SettingsError
from streams.campaigns.templates import Rendered, RenderError, Templates, example, load_campaigns_and_templates
from streams.campaigns.triggers import Campaign, Signal, load_campaigns

SHIPPED = Path(__file__).parents[3] / "campaigns"


def render(tmp_path: Path, body: str = "", subject: str = "s", **lead: Any) -> Rendered:
    (tmp_path / "templates").mkdir(exist_ok=True)
    (tmp_path / "templates" / "t.html.j2").write_text(body, "utf-8")
    step = {"subject": subject, "template": "t.html.j2"}
    campaign = Campaign.model_validate({"name": "c", "trigger": {"event": "form_submitted"}, "step": step})
    return Templates(tmp_path).render(campaign, Signal("acme", "e-1", "form_submitted", {}, lead))


def test_the_shipped_campaigns_render_with_and_without_values() -> None:
    campaigns, _ = load_campaigns_and_templates(SHIPPED)
    demo = campaigns["demo_request"]
    rendered = Templates(SHIPPED).render(demo, example(demo))
    assert rendered.subject == "Ada, your demonstration"
    assert "Hello Ada" in rendered.body
    empty = Templates(SHIPPED).render(demo, Signal("acme", "e-1", "form_submitted", {}, {}))
    assert "Hello there" in empty.body


def test_an_unknown_value_is_empty_and_a_name_outside_the_schema_is_an_error(tmp_path: Path) -> None:
    assert (
        render(tmp_path, "[{{ lead.employees }}{{ lead.custom.size }}{{ event.answers['x'] }}{{ lead.score }}]").body
        == "[]"
    )
    assert render(tmp_path, "{{ lead.employees }}", employees=42).body == "42"
    for wrong in ("{{ lead.nose }}", "{{ evnt.form_id }}", "{{ event.forms }}"):
        with pytest.raises(RenderError, match=r"templates/t\.html\.j2"):
            render(tmp_path, wrong)
    with pytest.raises(RenderError, match="subject"):
        render(tmp_path, subject="{{ lead.nose }}")


def test_values_are_escaped_in_html_and_not_in_subjects(tmp_path: Path) -> None:
    rendered = render(tmp_path, "{{ lead.first_name }}", "{{ lead.first_name }}", first_name="<b>A & B</b>")
    assert rendered.body == "&lt;b&gt;A &amp; B&lt;/b&gt;"
    assert rendered.subject == "<b>A & B</b>"


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\0", "\x1b"])
def test_a_subject_is_one_line_for_any_name(tmp_path: Path, end: str) -> None:
    subject = render(
        tmp_path, subject="Hello {{ lead.first_name }}", first_name=f"Ada{end}Bcc: eve@example.com"
    ).subject
    assert subject.isprintable()
    assert len(subject.splitlines()) == 1


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ lead.custom.update({'a': 'b'}) }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '../../../etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(tmp_path: Path, attack: str) -> None:
    with pytest.raises(RenderError):
        render(tmp_path, attack)


def test_an_error_message_contains_no_value(tmp_path: Path) -> None:
    with pytest.raises(RenderError) as caught:
        render(tmp_path, "{{ lead.first_name + 1 }}{{ lead.first_name | round }}", first_name="Ada Lovelace")
    assert "Ada" not in str(caught.value)


def test_loading_reports_errors_that_occur_only_for_some_leads(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    texts = {"syntax": "{% if %}", "name": "{{ lead.nose }}", "empty": "{{ lead.employees + 1 }}", "fine": "hello"}
    for name, text in texts.items():
        (tmp_path / "templates" / f"{name}.html.j2").write_text(text, "utf-8")
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\ntrigger: {{event: form_submitted}}\nstep: {{subject: s, template: {name}.html.j2}}\n",
            "utf-8",
        )
    assert set(load_campaigns(tmp_path)) == set(texts)
    with pytest.raises(SettingsError) as caught:
        load_campaigns_and_templates(tmp_path)
    problems = str(caught.value)
    assert "syntax.html.j2: line 1" in problems
    assert "name.html.j2" in problems
    assert "empty.html.j2: fails with TypeError (rendered for a lead without values)" in problems
    assert "fine" not in problems
