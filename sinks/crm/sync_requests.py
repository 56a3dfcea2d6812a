"""Consumes ``leads.crm-<crm>`` and records in ``crm_sync`` which version of each lead the CRM should have.

Guarantees: when :meth:`SyncRequests.apply` returns, the wanted versions of the batch are stored and its offsets may be
committed. A repeated batch changes nothing. The CRM is not called here, so a slow CRM does not delay the topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Message

from infra.kafka.dead_letters import dead_letter
from infra.kafka.processor import Outputs
from infra.kafka.producer import Output
from infra.outcomes import Dead, Problem, Reason
from schemas.codec import Codec, DecodeError
from sinks import record_checks
from sinks.accounts import UNKNOWN_TENANT, Accounts, Wakes
from sinks.crm.sync_table import CrmSyncTable, WantedVersion

RECORD = "crm_wanted"
_TEXTS = {"tenant": 200}  # maximum characters


@dataclass(slots=True)
class WantedBatch:
    """The highest wanted version of each lead in the batch, and the dead letters of invalid records."""

    wanted: dict[str, WantedVersion] = field(default_factory=dict)
    dead: list[Output] = field(default_factory=list)


class SyncRequests:
    """The batch loop's processor. Sets ``wake`` when it has stored work for the engine of this process.

    ``accounts``: of the tenants; without it there is one account, that of ``table``. Work of a tenant without an
    account is not stored: when the tenant gets one, all of its leads are.
    """

    def __init__(
        self,
        table: CrmSyncTable,
        codec: Codec,
        stage: str,
        wake: asyncio.Event | Wakes,
        accounts: Accounts[Any] | None = None,
    ) -> None:
        self._table = table
        self._codec = codec
        self._stage = stage
        self._wakes = wake if isinstance(wake, Wakes) else Wakes(wake)
        self._accounts = accounts

    def prepare(self, messages: Sequence[Message]) -> WantedBatch:
        """Decode ``messages`` and keep the request with the highest version of each lead."""
        batch = WantedBatch()
        for message in messages:
            wanted = _read(self._codec, message.value() or b"")
            if not isinstance(wanted, Dead) and self._accounts and self._accounts.scope(wanted.tenant) is None:
                wanted = UNKNOWN_TENANT
            if isinstance(wanted, Dead):
                batch.dead.append(dead_letter(message, self._stage, wanted))
                continue
            known = batch.wanted.get(wanted.lead_id)
            if known is None or known.version < wanted.version:
                batch.wanted[wanted.lead_id] = wanted
        return batch

    async def apply(self, prepared: WantedBatch) -> AsyncGenerator[Outputs, None]:
        """Store the wanted versions, in one statement for each account, and wake the engines."""
        by_scope: dict[str, list[WantedVersion]] = {}
        for wanted in prepared.wanted.values():
            scope = self._scope(wanted.tenant)
            if scope is not None:
                by_scope.setdefault(scope, []).append(wanted)
        for scope, each in by_scope.items():
            await self._table.want(each, scope)
            self._wakes(scope).set()
        yield prepared.dead

    def _scope(self, tenant: str) -> str | None:
        if self._accounts is None:
            return ""
        return self._accounts.scope(tenant) if self._accounts.has_account(tenant) else None


def _read(codec: Codec, payload: bytes) -> WantedVersion | Dead:
    if not payload:
        return Dead(Reason.EMPTY)
    try:
        decoded = codec.decode(payload)
    except DecodeError as error:
        return error.dead
    if decoded.type != RECORD:
        return Dead(Reason.UNKNOWN_EVENT_TYPE, (Problem("", f"this topic is for records of type {RECORD}"),))
    record = decoded.record
    if dead := record_checks.check(record, texts=_TEXTS, time="decided_at"):
        return dead
    return WantedVersion(record["lead_id"].lower(), record["tenant"], record["version"], record["decided_at"])
