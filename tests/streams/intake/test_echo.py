"""A CRM's report of a value that it was sent changes nothing, however late it comes; what a CRM user set does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streams.intake.echo import History, PastValues
from tests.events import HOUR, NOW, event, message, payload
from tests.streams.intake.conftest import intake, put
from tests.streams.intake.memory import MemoryStore

ADA: dict[str, Any] = {"email": "ada@example.com"}
CRM: dict[str, Any] = ADA | {"crm": "hubspot", "record_id": "501"}


@pytest.mark.parametrize(
    ("value", "after_cto_s", "reported", "echo"),
    [
        ("CTO", 5, False, True),  # it was still the lead's value
        ("CTO", 3600 + 5, False, True),  # replaced a moment ago: the write was on its way
        ("CTO", 3600 + 600, False, False),  # a CRM user has set it again
        ("CEO", 5, False, False),
        ("VP", 5, False, False),
        ("CTO", 3600 + 5, True, False),  # a CRM user replaced it and changed it back
        ("CTO", -600, False, False),
    ],
)
@pytest.mark.parametrize("late", [0, 20 * HOUR])
def test_a_late_report_of_an_earlier_value_is_an_echo(
    value: str, after_cto_s: int, reported: bool, echo: bool, late: int
) -> None:
    cto_at = NOW - 10 * HOUR
    past = [
        PastValues("lead", cto_at, cto_at + late, {"title": "CTO", "status": "new"}),
        PastValues("lead", cto_at + HOUR, cto_at + HOUR + late, {"title": "CEO"}, reported=reported),
    ]
    report = event("crm_record_changed", at=cto_at + after_cto_s * 1_000_000, title=value, **CRM)
    assert list(History(past).echoes(report, {"title": "CEO"})) == (["title"] if echo else [])


@pytest.mark.parametrize("form_first", [True, False])
async def test_a_value_that_a_person_has_overruled_may_be_set_again_by_a_crm_user(form_first: bool) -> None:
    start = NOW - 10 * HOUR
    app = payload("lead_updated", "app", at=start + 20_000_000, first_name="Ann", **ADA)
    form = payload("form_submitted", "form", at=start + 10_000_000, form_id="f", first_name="Bob", **ADA)
    user = payload("crm_record_changed", "user", at=start + 1_000_000_000, first_name="Ann", **CRM)
    assert await name_after([form, app, user] if form_first else [app, form, user]) == "Ann"


async def test_a_backlog_that_is_decided_at_once_has_its_echo_after_the_decision() -> None:
    events = [
        payload("lead_updated", "e-1", at=NOW - 2 * HOUR, first_name="Ann", **ADA),
        payload("lead_updated", "e-2", at=NOW - HOUR, first_name="Eve", **ADA),
        payload("crm_record_changed", "e-3", at=NOW + 2_000_000, first_name="Ann", **CRM),
    ]
    assert await name_after(events) == "Eve"


@pytest.mark.parametrize("together", [2, 3, 4])
async def test_an_echo_of_a_lead_that_is_merged_in_the_same_batch_is_recognised(together: int) -> None:
    start, second = NOW - 10 * HOUR, 1_000_000
    hubspot: dict[str, Any] = {"crm_ids": {"hubspot": "501"}}
    events = [
        payload("lead_updated", "e-1", at=start, first_name="other", **ADA),
        payload("lead_updated", "e-2", at=start + second, first_name="Ann", **hubspot),
        payload("lead_updated", "e-3", at=start + 10 * second, first_name="Eve", **hubspot),
        payload("lead_updated", "e-4", at=start + 20 * second, **ADA, **hubspot),
        payload("crm_record_changed", "e-5", at=start + 15 * second, first_name="Ann", **CRM, **hubspot),
    ]
    assert await name_after(events[:-together], events[-together:]) == "Eve"


async def name_after(*batches: list[bytes]) -> str:
    """Return the first name of the one lead that is left after the batches; each event is a batch if there is one."""
    store, offset = MemoryStore(), 0
    for batch in batches if len(batches) > 1 else [[each] for each in batches[0]]:
        messages = [message(value, offset=offset + n) for n, value in enumerate(batch)]
        await put(intake(store, now=lambda: NOW), *messages)
        offset += len(batch)
    (lead,) = [lead for lead in store.tables.leads.values() if not lead.merged_into]
    return str(json.loads(lead.attributes)["first_name"])


@pytest.mark.parametrize("together", [True, False])
async def test_a_late_echo_does_not_overwrite_the_newer_value(together: bool) -> None:
    start = NOW - 10 * HOUR
    values = [
        payload("lead_updated", "c-1", at=start, title="CTO", **ADA),
        payload("lead_updated", "c-2", at=start + HOUR, title="CEO", **ADA),
        payload("crm_record_changed", "c-3", at=start + 5_000_000, title="CTO", **CRM),
        payload("lead_updated", "c-4", at=start + 2 * HOUR, status="new", **ADA),
    ]
    store = MemoryStore()
    batch = [message(value, offset=n) for n, value in enumerate(values)]
    for part in [batch] if together else [[one] for one in batch]:
        published = await put(intake(store, now=lambda: NOW), *part)
    assert '"title":"CEO"' in published["lead_change"][-1]["lead"]
    (lead,) = store.tables.leads.values()
    assert lead.version == 4


async def test_an_echo_of_what_a_person_said_does_not_survive_an_erasure() -> None:
    start = NOW - 10 * HOUR
    second = 1_000_000
    values = [
        payload("form_submitted", "c-1", at=start, title="CTO", form_id="demo", **ADA),
        payload("crm_record_changed", "c-2", at=start + 5 * second, title="CTO", **CRM),
        payload("lead_erased", "c-3", at=start + 3 * second, reason="request", **ADA),
    ]
    store = MemoryStore()
    for offset, value in enumerate(values):
        await put(intake(store, now=lambda: NOW), message(value, offset=offset))
    (lead,) = store.tables.leads.values()
    assert "title" not in lead.attributes


@pytest.mark.parametrize("together", [True, False])
async def test_a_late_echo_of_a_merged_lead_is_recognised(together: bool) -> None:
    start = NOW - 10 * HOUR
    values = [
        payload("lead_updated", "c-1", at=start, external_id="u1"),
        payload("lead_updated", "c-2", at=start, title="CTO", **ADA),
        payload("lead_updated", "c-3", at=start + 1_000_000, title="CEO", external_id="u1", **ADA),
        payload("crm_record_changed", "c-4", at=start + 10_000_000, title="CTO", **CRM),
    ]
    store = MemoryStore()
    batch = [message(value, offset=n) for n, value in enumerate(values)]
    for part in [batch] if together else [[one] for one in batch]:
        published = await put(intake(store, now=lambda: NOW), *part)
    assert '"title":"CEO"' in published["lead_change"][-1]["lead"]
