"""The reconciler against a real Postgres and HubSpot's simulator."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from infra.errors import DependencyAway, Verdict
from infra.kafka.producer import Output
from infra.outcomes import Reason
from infra.runtime import Stop
from sinks.crm import Done, Failed, Gone, Result, Snapshot, store
from sinks.crm.store import Want
from tests.conftest import eventually

START = 1_770_000_000_000_000

pytestmark = pytest.mark.integration


class Crm:
    """A CRM that answers as the test wants, to see calls; what a CRM is, the contract tests say."""

    name = "fake"
    batch_max = 100

    def __init__(self, answer: Callable[[Snapshot], Result] | None = None, gate: asyncio.Event | None = None) -> None:
        self.answer = answer or (lambda snapshot: Done(f"remote-{snapshot.lead_id}"))
        self.gate = gate
        self.sent: list[tuple[str, int]] = []
        self.now: Counter[str] = Counter()
        self.most_at_once = 0

    async def ready(self) -> None:
        return

    async def upsert(self, records: Sequence[Snapshot]) -> Sequence[Result]:
        self.now.update(r.lead_id for r in records)
        self.most_at_once = max(self.most_at_once, *self.now.values())
        self.sent += [(r.lead_id, r.version) for r in records]
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        self.now.subtract(r.lead_id for r in records)
        return [self.answer(record) for record in records]

    async def retire(self, gone: Sequence[Gone]) -> Sequence[Result]:
        return [Done() for _ in gone]

    async def test(self) -> Sequence[str]:
        return ()


async def until(condition: Callable[[], bool]) -> None:
    async def look() -> bool:
        return condition()

    await eventually(look, 20)


async def test_a_burst_of_edits_is_one_call_with_the_newest_snapshot(world: Any) -> None:
    lead_id = await world.lead(email="ada@example.com", title="Analyst")
    for version in range(2, 101):
        await world.want(lead_id, version)
    await world.write(lead_id, 100, email="ada@example.com", title="Countess")

    assert await world.reconciler().once() == 1
    assert await world.reconciler().once() == 0

    assert (await world.stats())["calls"] == 1
    assert (await world.contact(lead_id))["jobtitle"] == "Countess"
    row = await world.row(lead_id)
    assert (row["wanted_version"], row["synced_version"], row["attempts"]) == (100, 100, 0)
    assert row["remote_id"] == "1"
    assert [(o["what"], o["lead_id"], o["version"]) for o in world.outcomes] == [("synced", lead_id, 100)]


async def test_a_hundred_leads_are_one_call(world: Any) -> None:
    for i in range(100):
        await world.lead(email=f"person{i}@example.com")
    assert await world.reconciler().once() == 100
    stats = await world.stats()
    assert (stats["calls"], stats["records"]) == (1, 100)


async def test_a_rejected_lead_is_parked_alone_until_a_newer_version_is_wanted(world: Any) -> None:
    good = [await world.lead(email=f"person{i}@example.com") for i in range(5)]
    bad = await world.lead(email="not an address")
    reconciler = world.reconciler()
    await reconciler.once()

    assert all([(await world.row(lead_id))["synced_version"] == 1 for lead_id in good])
    row = await world.row(bad)
    assert (row["synced_version"], row["attempts"], row["last_error"]) == (0, 1, "rejected")
    assert row["remote_id"] == ""
    parked = [o for o in world.outcomes if o["what"] == "parked"]
    assert [(o["lead_id"], o["reason"], o["detail"]) for o in parked] == [(bad, "rejected", "INVALID_EMAIL")]

    world.clock.forward(10 * 365 * 86_400)
    assert await reconciler.once() == 0
    await world.want(bad, 1)  # a redelivery of the same wish
    assert await reconciler.once() == 0
    await world.lead(bad, 2, email="a@example.com")
    assert await reconciler.once() == 1
    assert (await world.row(bad))["last_error"] == ""


async def test_a_newer_wish_during_a_rejected_call_is_tried_at_once(world: Any) -> None:
    gate = asyncio.Event()
    crm = Crm(lambda s: Failed(Verdict.DEAD, Reason.REJECTED) if s.version == 1 else Done("1"), gate)
    lead_id = await world.lead()
    first = asyncio.create_task(world.reconciler(crm).once())
    await until(lambda: bool(crm.sent))
    await world.lead(lead_id, 2)
    gate.set()
    await first
    await world.reconciler(crm).once()
    assert crm.sent == [(lead_id, 1), (lead_id, 2)]
    assert (await world.row(lead_id))["synced_version"] == 2


async def test_trouble_with_one_lead_backs_off_and_is_told_once(world: Any) -> None:
    answers: dict[str, Result] = {}
    crm = Crm(lambda s: answers.get(s.lead_id, Done("1")))
    stuck, fine = await world.lead(), await world.lead()
    answers[stuck] = Failed(Verdict.RETRY, Reason.CONFLICT)
    reconciler = world.reconciler(crm)
    waits = []
    for _ in range(12):
        await reconciler.once()
        waits.append((await world.row(stuck))["next_attempt_at"].timestamp() - world.clock() / 1e6)
        world.clock.forward(waits[-1])
    assert [round(w, 1) for w in waits] == [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert crm.sent.count((fine, 1)) == 1
    assert [o["reason"] for o in world.outcomes if o["lead_id"] == stuck] == ["conflict"]
    answers.clear()
    await reconciler.once()
    assert (await world.row(stuck))["attempts"] == 0


async def test_an_older_version_never_follows_a_newer_one(world: Any) -> None:
    lead_id = await world.lead(version=5, email="a@example.com")
    await world.reconciler().once()
    for version in (3, 5, 4):
        await world.want(lead_id, version)
    assert await world.reconciler().once() == 0
    row = await world.row(lead_id)
    assert (row["wanted_version"], row["synced_version"]) == (5, 5)


async def test_a_record_behind_what_was_announced_is_not_sent(world: Any) -> None:
    lead_id = await world.lead(version=2)
    await world.want(lead_id, 3)
    crm = Crm()
    await world.reconciler(crm).once()
    assert crm.sent == []
    assert (await world.row(lead_id))["last_error"] == "unavailable"


async def test_what_was_sent_counts_even_if_it_is_newer_than_what_was_wanted(world: Any) -> None:
    lead_id = await world.lead(version=1)
    await world.write(lead_id, 7)
    crm = Crm()
    await world.reconciler(crm).once()
    await world.want(lead_id, 7)
    assert await world.reconciler(crm).once() == 0
    assert crm.sent == [(lead_id, 7)]


async def test_a_crash_between_claim_and_write_back_frees_the_lead_when_the_lease_ends(world: Any) -> None:
    lead_id = await world.lead(email="a@example.com")
    crashed = await world.store.claim(100)
    assert [row.lead_id for row in crashed.rows] == [lead_id]
    assert await world.reconciler().once() == 0
    world.clock.forward(61)
    assert await world.reconciler().once() == 1
    # The late worker comes back: it may say what it sent, and disturbs nothing else.
    await world.store.parked(crashed, [(lead_id, 1, Reason.TIMEOUT, world.clock())])
    await world.store.synced(crashed, [(lead_id, 1, "1")])
    row = await world.row(lead_id)
    assert (row["synced_version"], row["attempts"], row["last_error"]) == (1, 0, "")


async def test_two_reconcilers_never_have_a_lead_in_two_calls(world: Any) -> None:
    gate = asyncio.Event()
    crm = Crm(gate=gate)
    leads = [await world.lead() for _ in range(250)]
    stop = Stop()
    workers = [asyncio.create_task(world.reconciler(crm).run(stop)) for _ in range(2)]
    await until(lambda: len(crm.sent) == 250)
    for lead_id in leads:  # more edits while all are in hand
        await world.lead(lead_id, 2)
    world.wake.set()
    gate.set()
    await until(lambda: len(crm.sent) == 500)
    stop.request()
    await asyncio.gather(*workers)
    assert crm.most_at_once == 1
    assert Counter(crm.sent) == {(lead_id, version): 1 for lead_id in leads for version in (1, 2)}


async def test_a_merged_lead_vanishes_before_the_survivor_takes_its_address(world: Any) -> None:
    survivor = await world.lead(first_name="Ada")
    loser = await world.lead(email="ada@example.com")
    await world.reconciler().once()
    assert (await world.stats())["records"] == 2

    await world.merge(loser, survivor)
    await world.write(survivor, 2, first_name="Ada", email="ada@example.com")
    await world.want(survivor, 2)  # the loser's row is found by the survivor's
    await world.reconciler().once()

    stats = await world.stats()
    assert (stats["records"], stats["merges"], stats["rejected"]) == (1, 1, 0)
    assert (await world.contact(survivor))["email"] == "ada@example.com"
    assert await world.row(loser) is None
    assert (await world.row(survivor))["synced_version"] == 2
    assert await world.rows() == stats["records"]

    await world.want(loser, 2)  # what intake says of the loser, late or again
    await world.reconciler().once()
    assert await world.row(loser) is None
    assert (await world.stats())["records"] == 1


async def test_the_survivor_takes_over_the_losers_record_if_it_has_none(world: Any) -> None:
    loser = await world.lead(email="ada@example.com")
    await world.reconciler().once()
    survivor = await world.lead(first_name="Ada", email="ada@example.com")
    await world.merge(loser, survivor)
    await world.want(loser, 2)
    await world.reconciler().once()
    stats = await world.stats()
    assert (stats["records"], stats["creates"], stats["merges"], stats["archived"]) == (1, 1, 0, 0)
    assert (await world.row(survivor))["remote_id"] == "1"
    assert await world.rows() == 1


async def test_a_loser_whose_remote_id_was_never_noted_is_found_by_its_key(world: Any) -> None:
    survivor, loser = await world.lead(first_name="Ada"), await world.lead(email="ada@example.com")
    await world.reconciler().once()
    await world.pool.execute(  # as after a crash between the call and the write-back
        "UPDATE crm_sync SET remote_id = '', synced_version = 0 WHERE destination = $1 AND lead_id = $2",
        world.destination,
        loser,
    )
    await world.merge(loser, survivor)
    await world.reconciler().once()
    assert (await world.stats())["records"] == await world.rows() == 1


async def test_a_survivor_waits_for_its_loser_that_another_worker_has_in_hand(world: Any) -> None:
    loser = await world.lead(email="ada@example.com")
    await world.reconciler().once()
    await world.lead(loser, 2, email="ada@example.com")
    other = await world.store.claim(1)
    survivor = await world.lead(email="ada@example.com")
    await world.merge(loser, survivor)
    await world.reconciler().once()
    assert (await world.row(survivor))["synced_version"] == 0
    await world.store.synced(other, [(loser, 2, "1")])
    world.clock.forward(1)
    await world.reconciler().once()
    assert (await world.row(survivor))["synced_version"] == 1
    assert (await world.stats())["records"] == await world.rows() == 1


async def test_a_deleted_lead_is_archived(world: Any) -> None:
    lead_id = await world.lead(email="a@example.com")
    await world.reconciler().once()
    await world.pool.execute("DELETE FROM leads WHERE lead_id = $1", lead_id)
    await world.want(lead_id, 2)
    await world.reconciler().once()
    assert (await world.stats())["records"] == await world.rows() == 0


async def test_an_erased_lead_keeps_its_record_and_nothing_in_it(world: Any) -> None:
    lead_id = await world.lead(email="ada@example.com", first_name="Ada")
    await world.reconciler().once()
    await world.lead(lead_id, 2)
    await world.pool.execute("""UPDATE leads SET provenance = '{"_erased": [0, 1, "e"]}' WHERE lead_id = $1""", lead_id)
    await world.reconciler().once()
    contact = await world.contact(lead_id)
    assert {value for value in contact.values() if value} == {lead_id}
    assert (await world.stats())["records"] == await world.rows() == 1


async def test_a_lead_in_the_way_that_failed_to_retire_does_not_hold_the_survivor(world: Any) -> None:
    survivor, loser = await world.lead(first_name="Ada"), await world.lead(last_name="L")
    crm = Crm()
    crm.retire = lambda gone: _answers([Failed(Verdict.RETRY, Reason.CONFLICT)] * len(gone))  # type: ignore[method-assign]
    await world.merge(loser, survivor)
    await world.reconciler(crm).once()
    assert (await world.row(survivor))["synced_version"] == 1
    assert (await world.row(loser))["last_error"] == "conflict"


async def _answers(results: Sequence[Result]) -> Sequence[Result]:
    return results


@pytest.mark.parametrize(("limits", "reason", "seconds"), [({"per_10s": 0}, "rate", 10), ({"daily": 0}, "day", 900)])
async def test_a_limit_stops_the_whole_sink_and_costs_no_lead_an_attempt(
    world: Any, limits: dict[str, int], reason: str, seconds: int
) -> None:
    leads = [await world.lead(email=f"person{i}@example.com") for i in range(3)]
    await world.set("limits", **limits)
    reconciler = world.reconciler()
    await reconciler.once()
    rows = [await world.row(lead_id) for lead_id in leads]
    assert {(row["attempts"], row["last_error"]) for row in rows} == {(0, "")}, reason
    calls = (await world.stats())["calls"]
    await world.set("limits", per_10s=100, daily=100)
    world.clock.forward(seconds - 1)
    assert await reconciler.once() == 0
    assert (await world.stats())["calls"] == calls
    world.clock.forward(1)
    assert await reconciler.once() == 3
    assert world.outcomes[-1]["what"] == "synced"


async def test_a_crm_that_is_down_gets_few_calls_and_everything_once_it_is_back(world: Any) -> None:
    for i in range(250):
        await world.lead(email=f"person{i}@example.com")
    await world.set("faults", status=500)
    reconciler = world.reconciler()
    await reconciler.once()
    assert await reconciler.once() == 0  # resting
    await world.set("faults")
    for _ in range(10):
        world.clock.forward(5)
        await reconciler.once()
    assert (await world.stats())["records"] == 250


async def test_an_outcome_that_cannot_be_delivered_does_not_lose_the_sync(world: Any) -> None:
    failures = 3

    async def emit(outputs: Sequence[Output]) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise DependencyAway("Kafka", "test")
        await deliver(outputs)

    deliver, world.emit = world.emit, emit
    lead_id = await world.lead(email="a@example.com")
    stop = Stop()
    worker = asyncio.create_task(world.reconciler().run(stop))
    await until(lambda: bool(world.outcomes))
    stop.request()
    await worker
    assert (await world.row(lead_id))["synced_version"] == 1
    assert failures == 0


async def test_a_call_that_never_ends_is_given_up_within_the_lease(world: Any) -> None:
    lead_id = await world.lead()
    crm = Crm(gate=asyncio.Event())
    reconciler = world.reconciler(crm)
    reconciler._config = reconciler._config.model_copy(update={"lease_s": 0.1})
    await reconciler.once()
    row = await world.row(lead_id)
    assert (row["attempts"], row["last_error"]) == (1, "timeout")


async def test_no_statement_reads_the_whole_table(world: Any) -> None:
    await world.pool.execute(
        "INSERT INTO crm_sync (destination, tenant, lead_id, wanted_version, synced_version, last_wanted_at) "
        "SELECT $1, 'acme', gen_random_uuid(), 1, (i % 2), now() FROM generate_series(1, 50000) i",
        world.destination,
    )
    await world.pool.execute("VACUUM ANALYZE crm_sync")
    claim = await world.store.claim(100)
    ids = [row.lead_id for row in claim.rows]
    columns: dict[str, list[Any]] = {
        store._CLAIM: [claim.until, claim.until, 100],
        store._CLAIM_LOSERS: [claim.until, claim.until, ids, ids],
        store._LOCK: [ids],
        store._SYNCED: [claim.until, claim.until, ids, [1] * 100, ["1"] * 100],
        store._PARKED: [claim.until, claim.until, ids, [1] * 100, ["x"] * 100, [claim.until] * 100],
        store._RELEASE: [claim.until, claim.until, ids],
        store._FORGET: [claim.until, ids, [1] * 100],
        store._START_OVER: [claim.until, ids],
        store._ADOPTED: [ids, ["1"] * 100],
    }
    for statement, arguments in columns.items():
        plan = "\n".join(r[0] for r in await world.pool.fetch(f"EXPLAIN {statement}", world.destination, *arguments))
        assert "Seq Scan on crm_sync" not in plan, plan


async def test_wishes_of_one_batch_may_be_for_new_and_known_leads(world: Any) -> None:
    known = await world.lead(version=3)
    new = str(uuid.uuid4())
    await world.want(new, 1)
    await world.want(known, 2)
    assert (await world.row(known))["wanted_version"] == 3
    assert (await world.row(new))["wanted_version"] == 1


async def test_wishes_and_results_that_meet_in_many_rows_do_not_deadlock(world: Any) -> None:
    leads = [str(uuid.uuid4()) for _ in range(1000)]
    version = 0

    async def wish() -> None:
        nonlocal version
        for _ in range(15):
            version += 1
            await world.store.want([Want(lead_id, "acme", version, START) for lead_id in leads])

    async def sync(order: int) -> None:
        for _ in range(15):
            claim = await world.store.claim(600)
            rows = claim.rows[::order]
            await world.store.synced(claim, [(row.lead_id, row.wanted, "1") for row in rows[::2]])
            await world.store.release(claim, [row.lead_id for row in rows[1::2]])

    await wish()
    await asyncio.gather(wish(), sync(1), sync(-1))
    assert await world.rows() == 1000
