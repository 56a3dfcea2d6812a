"""Decisions: the same events in any batches give the same leads, and each event is decided once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.clock import uuid7
from infra.kafka.producer import Output
from infra.kafka.sizes import output_bytes
from streams.intake.decide import decide, reported_fields, reported_leads, touches_needed
from streams.intake.decision import Change, DecisionInput, Limits
from streams.intake.dedupe import dedupe
from streams.intake.event import Event, EventBatch
from streams.intake.identity import identify
from streams.intake.pipeline import Intake
from streams.intake.route import Router
from tests.conftest import outputs_of
from tests.events import CODEC, HOUR, NOW, event
from tests.streams.intake.memory import MemoryStore

KINDS = (
    "lead_updated",
    "form_submitted",
    "enrichment_completed",
    "consent_changed",
    "page_viewed",
)  # erasures: test_erasure.py
WORDS = st.sampled_from(["Ada", "Grace", "Alan"])
SMALL = 32_768  # maximum record size of the topics; of a lead then 8 KiB


@st.composite
def one(draw: st.DrawFn, number: int, *, largest: int = 3) -> Event:
    own: dict[str, Any] = {"at": NOW - draw(st.integers(0, 3)) * HOUR}
    kind = draw(st.sampled_from(KINDS))
    person = draw(st.integers(0, 3))
    ids = {"email": f"p{person}@example.com", "anonymous_id": f"a{person}", "external_id": f"x{person // 2}"}
    for name in draw(st.lists(st.sampled_from(sorted(ids)), min_size=1, max_size=2)):
        own[name] = ids[name]
    if kind in ("lead_updated", "form_submitted", "enrichment_completed"):
        own["first_name"] = draw(WORDS)
    if kind == "lead_updated":
        sizes = st.sampled_from([1, 2, largest]).map("x".__mul__)
        own["custom"] = draw(st.dictionaries(st.sampled_from(["plan", "tier", f"k{number}"]), sizes, max_size=3))
    if kind == "enrichment_completed":
        own["provider"] = "pdl"
    if kind == "consent_changed":
        own |= {"purpose": "marketing", "status": draw(st.sampled_from(["granted", "withdrawn"]))}
    return event(kind, f"e-{number}", offset=number, **own)


@st.composite
def many(draw: st.DrawFn, *, largest: int = 3) -> list[Event]:
    return [draw(one(number, largest=largest)) for number in range(draw(st.integers(1, 10)))]


@st.composite
def cuts(draw: st.DrawFn, events: Sequence[Event]) -> list[list[Event]]:
    """Split ``events`` into batches, some of which are redelivered, as after a crash before the offset commit."""
    batches: list[list[Event]] = []
    left = list(events)
    while left:
        size = draw(st.integers(1, len(left)))
        batches += [left[:size]] * draw(st.sampled_from([1, 1, 2]))
        left = left[size:]
    return batches


def intake(store: MemoryStore, *, limit: int = 4_194_304) -> Intake:
    names = ("leads.changed", "leads.enrichment-requested", "leads.campaign-signals", "leads.crm-hubspot")
    topics = dict.fromkeys((*names, "leads.outcomes"), limit)
    router = Router(CODEC, ["leads.crm-hubspot"], topics=topics, now=lambda: NOW)
    return Intake(store, CODEC, router, max_event_bytes=65_536, max_ahead_s=0, now=lambda: NOW)


async def put(store: MemoryStore, events: Sequence[Event], **own: Any) -> Sequence[Output]:
    return await outputs_of(intake(store, **own).apply(EventBatch(list(events))))


@given(st.data(), many())
@settings(max_examples=200, deadline=None)
async def test_any_batching_and_any_redelivery_give_the_same_leads(data: st.DataObject, events: list[Event]) -> None:
    found: list[list[str]] = []
    for batches in ([events], data.draw(cuts(events))):
        store = MemoryStore()
        for batch in batches:
            await put(store, batch)
        found.append(store.summary())
        assert len(store.tables.receipts) == len(store.tables.history) == len(events)

    assert found[0] == found[1]


@given(many(), many())
@settings(max_examples=100, deadline=None)
async def test_a_redelivered_batch_publishes_the_same_and_writes_nothing(
    before: list[Event], events: list[Event]
) -> None:
    store = MemoryStore()
    await put(store, [e._replace(offset=100 + e.offset, event_id=f"b{e.event_id}", key=f"b{e.key}") for e in before])
    first = await put(store, events)
    tables = repr(store.tables)

    again = await put(store, events)

    assert repr(store.tables) == tables
    parts = [[decoded(o) for o in outputs if o.topic == "leads.changed"] for outputs in (first, again)]
    newest = {record["lead_id"]: record["lead"] for record in parts[0]}
    assert parts[1] == [record | {"lead": newest[record["lead_id"]]} for record in parts[0]]
    assert sorted(map(about, first)) == sorted(map(about, again))


def decoded(output: Output) -> dict[str, Any]:
    return CODEC.decode(output.value or b"").record


def about(output: Output) -> tuple[str, bytes, str]:
    return output.topic, output.key or b"", decoded(output).get("event_id", "")


@given(many(), st.data())
@settings(max_examples=100, deadline=None)
async def test_duplicates_write_nothing_and_are_reported(events: list[Event], data: st.DataObject) -> None:
    store = MemoryStore()
    await put(store, events)
    tables = repr(store.tables)
    copies = data.draw(st.lists(st.sampled_from(events), min_size=1))

    outputs = await put(store, [copy._replace(offset=1000 + n) for n, copy in enumerate(copies)])

    assert repr(store.tables) == tables
    assert {output.topic for output in outputs} == {"leads.outcomes"}
    assert [decoded(output)["offset"] for output in outputs] == [1000 + n for n in range(len(copies))]


@given(st.data(), many(largest=4000))
@settings(max_examples=200, deadline=None)
async def test_events_that_are_too_large_change_nothing(data: st.DataObject, events: list[Event]) -> None:
    one_batch, without = MemoryStore(), MemoryStore()
    dead: set[int] = set()
    for batch in data.draw(cuts(events)):
        outputs = await put(one_batch, batch, limit=SMALL)
        assert not [o for o in outputs if o.topic != "leads.dead" and output_bytes(o) > SMALL]
        dead |= {int(dict(o.headers or [])["leadstream.offset"]) for o in outputs if o.topic == "leads.dead"}
        await put(without, [e for e in batch if e.offset not in dead], limit=SMALL)

    everything = await put(one_batch, [e for e in events if e.offset not in dead], limit=SMALL)
    assert max((output_bytes(output) for output in everything), default=0) <= SMALL
    assert one_batch.summary() == without.summary()
    assert len(one_batch.tables.receipts) == len(events) - len(dead)


async def test_an_event_that_fits_is_accepted_in_a_batch_with_one_that_is_too_large() -> None:
    """The event that merges two leads is too large; an event that fits only its own lead is accepted."""
    store = MemoryStore()
    large, small = {"email": "a@example.com"}, {"external_id": "b"}
    sizes: list[tuple[str, int, dict[str, Any]]] = [("of-large", 5000, large), ("of-small", 1000, small)]
    batch: list[tuple[str, int, dict[str, Any]]] = [
        ("joining", 3600, large | small),
        ("fits", 3600, small),
        ("too-large", 3600, large),
    ]
    made = {
        name: event("lead_updated", name, offset=n, custom={name: "x" * size}, **who)
        for n, (name, size, who) in enumerate([*sizes, *batch])
    }
    for name, _, _ in sizes:
        assert await put(store, [made[name]], limit=SMALL)

    outputs = await put(store, [made[name] for name, _, _ in batch], limit=SMALL)

    dead = [decoded(output)["envelope"]["event_id"] for output in outputs if output.topic == "leads.dead"]
    assert dead == ["joining", "too-large"]
    assert len(store.tables.receipts) == 3


async def test_an_erasure_that_restores_more_than_a_lead_may_have_is_dead() -> None:
    """Later values of lower rank are stored as hidden values, which do not count as the lead's size."""
    store = MemoryStore()
    who: dict[str, Any] = {"email": "a@example.com"}
    for number in range(4):  # twice the maximum of a lead, hidden by short values of higher rank
        names = [f"{number}-{n}" for n in range(4)]
        own: dict[str, Any] = {"custom": dict.fromkeys(names, "x"), "crm": "hubspot", "record_id": "1"}
        short = event("crm_record_changed", f"s-{number}", offset=2 * number, at=NOW - 2 * HOUR, **own, **who)
        own = {"custom": dict.fromkeys(names, "x" * 1000)}
        long = event("lead_updated", f"l-{number}", offset=2 * number + 1, at=NOW, **own, **who)
        assert not [o for o in await put(store, [short, long], limit=SMALL) if o.topic == "leads.dead"]
    before = repr(store.tables)

    outputs = await put(store, [event("lead_erased", "erased", at=NOW - HOUR, offset=100, **who)], limit=SMALL)

    (dead,) = outputs
    assert dead.topic == "leads.dead"
    assert "the lead would be larger than 8192 bytes" in detail(dead)
    assert repr(store.tables) == before


async def test_an_erasure_whose_changes_do_not_fit_a_record_is_dead() -> None:
    """A removed short field takes more bytes in the changes than in the lead."""
    store = MemoryStore()
    for number in range(4):
        custom = {f"{number}{n:03d}": "x" for n in range(170)}
        made = event("lead_updated", f"e-{number}", offset=number, email="a@example.com", custom=custom)
        assert not [o for o in await put(store, [made], limit=SMALL) if o.topic == "leads.dead"]
    before = repr(store.tables)
    for at, (length, dead) in enumerate([(8000, True), (10, False)], 10):
        erasing = event("lead_erased", f"r-{at}", offset=at, email="a@example.com", reason="r" * length)

        outputs = await put(store, [erasing], limit=SMALL)

        assert ([output.topic for output in outputs] == ["leads.dead"]) is dead
        assert not dead or "a record about the lead would be larger than 32768 bytes" in detail(outputs[0])
        assert (repr(store.tables) == before) is dead


@given(many(), many())
@settings(max_examples=100, deadline=None)
async def test_a_decision_depends_only_on_its_input_and_does_not_change_it(
    before: list[Event], events: list[Event]
) -> None:
    store = MemoryStore()
    await put(store, before)
    renamed = [e._replace(offset=100 + e.offset, event_id=f"n{e.event_id}", key=f"n{e.key}") for e in events]
    async with store.transaction() as stored:
        split = dedupe([*before, *renamed], await stored.receipts([*before, *renamed], NOW))
        owners = await stored.owners(split.new)
        who = identify(split.new, owners, NOW, uuid7)
        leads = await stored.lock(who.existing)
        touches = await stored.touches(*touches_needed(split.new, who, leads))
        reports = await stored.past(reported_leads(split.new, who), reported_fields(split.new))
        past = await stored.history(split.redelivered)
        known = DecisionInput(NOW, split, owners, who, leads, touches, reports, *past)
    shown = repr(known)

    first, second = decide(known, NO_LIMITS), decide(known, NO_LIMITS)

    assert first == second
    assert repr(known) == shown
    assert len(first.accepted) == len(events)
    assert len(first.redelivered) == len(before)


def detail(dead: Output) -> str:
    value = dict(dead.headers or [])["leadstream.detail"]
    return (value or b"").decode()


def _anything(_: Change) -> bool:
    return True


NO_LIMITS = Limits(1 << 20, _anything, 1 << 30)
