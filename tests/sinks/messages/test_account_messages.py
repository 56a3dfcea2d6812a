"""Each message is sent by the account of its tenant."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infra.postgres.leased import LeasedWork, WorkLimits
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.retry import Backoff
from sinks.accounts import Wakes
from sinks.messages import Channel
from sinks.messages.account_messages import AccountMessages
from sinks.messages.delivery import MessageDelivery
from sinks.messages.message_requests import MessageRequests
from sinks.messages.messages_table import MessageRow, MessagesTable
from tests.conftest import outputs_of
from tests.sinks.messages.conftest import CODEC, STAGE, World

pytestmark = pytest.mark.integration


class Scopes:
    """The accounts of a test: the scope of each tenant; "": none, None: unknown tenant."""

    def __init__(self, **scopes: str | None) -> None:
        self.scopes = scopes

    def scope(self, tenant: str) -> str | None:
        return self.scopes[tenant]

    def has_account(self, tenant: str) -> bool:
        return bool(self.scopes[tenant])


def engine(world: World, scope: str, channel: Channel, accounts: Any) -> LeasedWork[MessageRow]:
    table = MessagesTable(world.pool, scope, lease_s=60, clock=world.clock)
    pause = Pause(STAGE, scope, Backoff(5, 30, lambda: 0.5), world.clock)
    delivery = MessageDelivery(table, channel, world.config(), pause=pause, codec=CODEC, stage=STAGE, clock=world.clock)
    return LeasedWork(
        STAGE,
        table,
        AccountMessages(table, accounts, scope, delivery.handle, Wakes()).handle,
        limits=WorkLimits(in_flight=2),
        backoff=Backoff(5, 30, lambda: 0.5),
        pause=pause,
        outcomes=OutcomeQueue(world.emit),
        records=world.records,
        wake=asyncio.Event(),
        clock=world.clock,
    )


async def test_a_message_that_was_stored_before_its_tenant_had_an_account_is_sent_by_that_account(world: World) -> None:
    own = f"{world.name}:acme"
    message_id = await world.requested()
    shared = world.channel(from_address="Shared <shared@example.com>")
    acme = world.channel(from_address="Acme <hello@acme.example>")
    await engine(world, world.name, shared, Scopes(acme=own)).once()
    assert await world.mails() == []
    assert (await world.row(message_id))["account"] == own
    await engine(world, own, acme, Scopes(acme=own)).once()
    (mail,) = await world.mails()
    assert "hello@acme.example" in str(mail)
    assert world.reported() == [("sent", "")]


async def test_a_message_of_a_tenant_that_became_unknown_is_dead(world: World) -> None:
    await world.requested()
    await engine(world, world.name, world.channel(), Scopes(acme=None)).once()
    assert await world.mails() == []
    assert world.reported() == [("dead", "unknown_tenant")]


async def test_requests_are_stored_by_account_and_without_an_account_they_are_dead(world: World) -> None:
    own, wakes = f"{world.name}:acme", Wakes()
    accounts: Any = Scopes(acme=own, globex=world.name, initech="", hooli=None)
    requests = MessageRequests(
        world.table(), CODEC, world.records, channel=world.name, stage=STAGE, wake=wakes, accounts=accounts
    )
    lead_id = await world.lead()
    records: Any = [
        world.request(lead_id, tenant=tenant, message_id=f"{world.name} {tenant}") for tenant in accounts.scopes
    ]
    dead = await outputs_of(requests.apply(requests.prepare(records)))
    reasons = [dict(output.headers or ())["leadstream.reason"] for output in dead]
    assert reasons == [b"misconfigured", b"unknown_tenant"]
    rows = await world.pool.fetch("SELECT tenant, account FROM messages_sent WHERE lead_id = $1 ORDER BY 1", lead_id)
    assert [tuple(row) for row in rows] == [("acme", own), ("globex", world.name)]
    assert wakes(own).is_set()
