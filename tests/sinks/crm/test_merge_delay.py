"""Contacts of merged leads are merged after a delay, and not if the merge of the leads is undone by then."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

pytestmark = pytest.mark.integration


async def merged(world: Any, survivor_email: str) -> tuple[str, str]:
    """Return a survivor and a lead merged into it; both have a contact."""
    own = {"email": survivor_email} if survivor_email else {}
    survivor = await world.lead(first_name="Ada", **own)
    loser = await world.lead(email="grace@example.com", first_name="Grace")
    await world.sync(merge_delay_s=3600).once()
    assert (await world.stats())["records"] == 2
    await world.merge(loser, survivor)
    before = [{"attributes": each, "provenance": {}} for each in (own, {"email": "grace@example.com"})]
    await world.pool.execute(
        "INSERT INTO lead_merges (survivor_id, loser_id, tenant, event_id, merged_at, survivor, loser, identities) "
        "VALUES ($1, $2, 'acme', 'm', $3, $4, $5, '[]')",
        survivor,
        loser,
        world.clock(),
        *(orjson.dumps(each).decode() for each in before),
    )
    await world.want(loser, 2)
    return survivor, loser


async def test_contacts_are_merged_after_the_delay(world: Any) -> None:
    survivor, loser = await merged(world, "ada@example.com")
    await world.write(survivor, 2, first_name="Ada L.", email="ada@example.com")
    await world.want(survivor, 2)

    for _ in range(3):  # the survivor does not wait
        await world.sync(merge_delay_s=3600).once()
        world.clock.forward(1000)
    assert ((await world.stats())["merges"], (await world.contact(survivor))["firstname"]) == (0, "Ada L.")

    world.clock.forward(700)
    await world.sync(merge_delay_s=3600).once()
    stats = await world.stats()
    assert (stats["records"], stats["merges"]) == (1, 1)
    assert await world.row(loser) is None


async def test_contacts_are_not_merged_if_the_merge_is_undone_in_time(world: Any) -> None:
    survivor, loser = await merged(world, "ada@example.com")
    await world.sync(merge_delay_s=3600).once()
    contacts = [await world.contact(lead_id) for lead_id in (survivor, loser)]

    await world.pool.execute("UPDATE leads SET merged_into = NULL, version = 3 WHERE lead_id = $1", loser)
    await world.pool.execute("DELETE FROM lead_aliases WHERE alias_id = $1", loser)
    await world.pool.execute("UPDATE lead_merges SET undone_at = now() WHERE loser_id = $1", loser)
    await world.want(loser, 3)
    await world.sync(merge_delay_s=3600).once()

    assert (await world.row(loser))["synced_version"] == 3  # at once, in the same contact
    world.clock.forward(7200)
    await world.sync(merge_delay_s=3600).once()
    stats = await world.stats()
    assert (stats["records"], stats["merges"], stats["creates"]) == (2, 0, 2)
    assert [await world.contact(lead_id) for lead_id in (survivor, loser)] == contacts


async def test_a_survivor_that_takes_over_the_address_does_not_wait(world: Any) -> None:
    await merged(world, "")

    await world.sync(merge_delay_s=3600).once()

    assert (await world.stats())["merges"] == 1
