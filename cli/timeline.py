"""Reads the timeline of one event, lead or dead record from ClickHouse and Postgres, for ``leadstream trace``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from infra.clock import to_datetime
from schemas.addresses import normal_email
from schemas.phones import parse_phone

if TYPE_CHECKING:
    import asyncpg

    from infra.clickhouse.client import ClickHouse

_COORDINATES = re.compile(r"([a-z0-9._-]+)[/ ](\d{1,9})[/ ](\d{1,18})")
_MAX_EVENTS = 500  # of one lead, newest first

_EVENTS = """
SELECT tenant, event_type, toString(original_lead_id) AS lead, version, event_id, source, own, topic, partition, offset,
       changes, arrayMap(x -> toString(x), merged) AS merged_leads, toUnixTimestamp64Micro(occurred_at) AS occurred_us,
       toUnixTimestamp64Micro(received_at) AS received_us, toUnixTimestamp64Micro(decided_at) AS decided_us
FROM lead_events WHERE {where} ORDER BY decided_us DESC, version DESC LIMIT {limit}
"""
_OUTCOMES = """
SELECT toUnixTimestamp64Micro(at) AS at_us, stage, what, reason, tenant, event_id, lead_id, version, topic, partition,
       offset, detail
FROM outcomes WHERE {where} ORDER BY at_us
"""
_DEAD = """
SELECT toUnixTimestamp64Micro(at) AS at_us, stage, reason, detail, topic, partition, offset, dead_partition,
       dead_offset, tenant, event_id
FROM dead_letters WHERE {where} ORDER BY at_us LIMIT 500
"""
# A lead, the lead that it was merged into, and all leads that were merged into that one, directly or in several steps.
_MERGED_LEADS = """
WITH RECURSIVE up AS (
    SELECT $1::uuid AS lead_id UNION SELECT a.lead_id FROM lead_aliases a JOIN up ON a.alias_id = up.lead_id
), family AS (
    SELECT lead_id FROM up UNION SELECT a.alias_id FROM lead_aliases a JOIN family f ON a.lead_id = f.lead_id
)
SELECT l.lead_id, l.tenant, l.version, l.merged_into FROM leads l JOIN family USING (lead_id)
"""
_CRM = """
SELECT destination, wanted_version, synced_version, remote_id, attempts, last_error, detail, synced_at
FROM crm_sync WHERE lead_id = ANY($1::uuid[]) AND (remote_id <> '' OR wanted_version > synced_version)
ORDER BY destination
"""


class NothingFoundError(Exception):
    """No timeline, or more than one, matches the id; the message says what to try next."""


@dataclass(slots=True)
class Step:
    """One step: ``at`` in microseconds since 1970, ``after_ms`` in milliseconds since the previous step."""

    at: int
    stage: str
    what: str
    said: str  # the description; part of the format of `trace --json`
    event_id: str = ""
    version: int = 0
    after_ms: float = 0.0


@dataclass(slots=True)
class Timeline:
    """The steps of one event (``kind`` "event"), lead ("lead") or record that is not an event ("record")."""

    kind: str
    tenant: str = ""
    lead_id: str = ""
    version: int = 0
    merged: list[str] = field(default_factory=list)  # leads that were merged into ``lead_id``
    steps: list[Step] = field(default_factory=list)
    crm: list[dict[str, Any]] = field(default_factory=list)


class TimelineReader:
    """Reads timelines from ClickHouse and Postgres.

    Args:
        clickhouse: for events, outcomes and dead letters.
        postgres: for leads, identities and the state of CRM sync.
        values: include the new values of changed fields, which may be personal data.

    """

    def __init__(self, clickhouse: ClickHouse, postgres: asyncpg.Connection, *, values: bool) -> None:
        self._clickhouse = clickhouse
        self._postgres = postgres
        self._values = values

    async def read(self, id_: str, tenant: str) -> Timeline:
        """Return the timeline of ``id_``, oldest step first.

        Args:
            id_: matched in this order: topic/partition/offset, event_id, lead_id, identifier of a lead.
            tenant: only this tenant; "" means all.

        Raises:
            NothingFoundError: nothing matches, or the id exists in several tenants.

        """
        timeline = await self._find(id_, tenant)
        timeline.steps.sort(key=lambda step: (step.at, step.version))  # stable: "received" stays before "accepted"
        for previous, step in zip(timeline.steps, timeline.steps[1:], strict=False):
            step.after_ms = round((step.at - previous.at) / 1000, 1)
        return timeline

    async def _find(self, id_: str, tenant: str) -> Timeline:
        if match := _COORDINATES.fullmatch(id_):
            return await self._record(match[1], int(match[2]), int(match[3]))
        of_tenant = " AND tenant = {tenant:String}" if tenant else ""
        events = await self._events("event_id = {id:String}" + of_tenant, id=id_, tenant=tenant)
        outcomes = await self._outcomes("event_id = {id:String}" + of_tenant, id=id_, tenant=tenant)
        dead = await self._dead("event_id = {id:String}" + of_tenant, id=id_, tenant=tenant)
        if events:
            _require_one_tenant(event["tenant"] for event in events)
            found = await self._event(events, outcomes)
            found.steps += _dead_steps(dead)
            return found
        lead_id = _uuid(id_) or await self._lead_id_of(id_, tenant)
        if lead_id and (timeline := await self._lead(lead_id)):
            return timeline
        if outcomes or dead:
            _require_one_tenant(row["tenant"] for row in (*outcomes, *dead))
            steps = [self._outcome(o, {}) for o in outcomes] + _dead_steps(dead)
            return Timeline("event", (*outcomes, *dead)[0]["tenant"], steps=steps)
        raise NothingFoundError(
            "Nothing found for this id. Intake may not have reached the event yet: see `leadstream lag`. Or the record "
            "is dead: find its topic, partition and offset with `leadstream dead list`, and trace them."
        )

    async def _record(self, topic: str, partition: int, offset: int) -> Timeline:
        coordinates = {"topic": topic, "partition": partition, "offset": offset}
        where = "topic = {topic:String} AND partition = {partition:Int32} AND offset = {offset:Int64}"
        if events := await self._events(where, **coordinates):
            same_event = "event_id = {id:String} AND tenant = {tenant:String}"
            first = events[0]
            outcomes = await self._outcomes(same_event, id=first["event_id"], tenant=first["tenant"])
            return await self._event(events, outcomes)
        outcomes = await self._outcomes(where, **coordinates)
        dead = await self._dead(where, **coordinates)
        if not outcomes and not dead:
            raise NothingFoundError(
                "Nothing found for this record. Intake may not have reached it yet: see `leadstream lag`."
            )
        steps = [self._outcome(o, {}) for o in outcomes if not (dead and o["what"] == "dead")]
        return Timeline("record", steps=steps + _dead_steps(dead))

    async def _event(self, events: Sequence[dict[str, Any]], outcomes: Sequence[dict[str, Any]]) -> Timeline:
        event = events[0]
        timeline = await self._head("event", event["lead"], event["tenant"])
        remote_ids = _remote_ids(timeline.crm)
        timeline.steps = [step for each in events for step in self._accepted(each)]
        timeline.steps += [self._outcome(o, remote_ids) for o in outcomes]
        where = "lead_id = {lead:String} AND event_id = '' AND version >= {version:Int64}"
        later = await self._outcomes(where, lead=event["lead"], version=event["version"])
        # Outcomes about the lead as a whole: those of each stage until it first processed this version or a later one.
        processed: set[str] = set()
        for outcome in later:
            if outcome["stage"] not in processed:
                timeline.steps.append(self._outcome(outcome, remote_ids))
            if outcome["what"] != "parked":
                processed.add(outcome["stage"])
        return timeline

    async def _lead(self, lead_id: str) -> Timeline | None:
        timeline = await self._head("lead", lead_id, "")
        lead_ids = [timeline.lead_id, *timeline.merged]
        events = await self._events("original_lead_id IN {ids:Array(UUID)}", ids=lead_ids)
        outcomes = await self._outcomes("lead_id IN {ids:Array(String)}", ids=lead_ids)
        if not timeline.version and not events and not outcomes:
            return None
        remote_ids = _remote_ids(timeline.crm)
        timeline.tenant = timeline.tenant or (events[0]["tenant"] if events else "")
        event_ids = {event["event_id"] for event in events}
        # An array parameter cannot hold an id with a quote or a backslash: such an event must be traced by its id.
        plain_ids = [event_id for event_id in event_ids if not {"'", "\\"} & set(event_id)]
        duplicates = await self._outcomes("event_id IN {ids:Array(String)} AND lead_id = ''", ids=plain_ids)
        timeline.steps = [step for event in events for step in self._accepted(event)]
        timeline.steps += [self._outcome(o, remote_ids) for o in (*outcomes, *duplicates)]
        return timeline

    async def _head(self, kind: str, lead_id: str, tenant: str) -> Timeline:
        """Return a timeline without steps; ``lead_id`` is replaced by the lead that it was merged into."""
        rows = await self._postgres.fetch(_MERGED_LEADS, UUID(lead_id))
        survivor = next((row for row in rows if row["merged_into"] is None), None)
        timeline = Timeline(kind, tenant, lead_id)
        if survivor is not None:
            timeline.tenant, timeline.version = survivor["tenant"], survivor["version"]
            timeline.lead_id = str(survivor["lead_id"])
            timeline.merged = sorted(str(row["lead_id"]) for row in rows if row["merged_into"] is not None)
        for row in await self._postgres.fetch(_CRM, [UUID(timeline.lead_id)]):
            synced_at = to_datetime(row["synced_at"]).isoformat() if row["synced_at"] else None
            timeline.crm.append(dict(row) | {"synced_at": synced_at})
        return timeline

    async def _lead_id_of(self, identifier: str, tenant: str) -> str:
        rows = await self._postgres.fetch(
            "SELECT DISTINCT tenant, lead_id FROM identities WHERE value = ANY($1) AND ($2 = '' OR tenant = $2)",
            [identifier, normal_email(identifier), parse_phone(identifier).key],
            tenant,
        )
        _require_one_tenant(row["tenant"] for row in rows)
        return str(rows[0]["lead_id"]) if rows else ""

    async def _events(self, where: str, **params: Any) -> list[dict[str, Any]]:
        statement = _EVENTS.replace("{where}", where).replace("{limit}", str(_MAX_EVENTS))
        return await self._clickhouse.query(statement, **params)

    async def _outcomes(self, where: str, **params: Any) -> list[dict[str, Any]]:
        return await self._clickhouse.query(_OUTCOMES.replace("{where}", where), **params)

    async def _dead(self, where: str, **params: Any) -> list[dict[str, Any]]:
        return await self._clickhouse.query(_DEAD.replace("{where}", where), **params)

    def _accepted(self, event: dict[str, Any]) -> list[Step]:
        ids = {"event_id": event["event_id"], "version": event["version"]}
        place = f"{event['topic']}/{event['partition']}/{event['offset']}"
        description = f"{event['event_type']} from {event['source']} at {place}"
        steps = [Step(event["received_us"], "kafka", "received", description, **ids)]
        changes: dict[str, Any] = json.loads(event["changes"] or "{}")
        changed = ", ".join(f"{k}={v}" if self._values else k for k, v in changes.items()) or "nothing"
        description = f"version {event['version']}; changed {changed}"
        steps.append(Step(event["decided_us"], "intake", "accepted", description, **ids))
        if event["merged_leads"]:
            description = f"merged {', '.join(event['merged_leads'])} into {event['lead']}"
            steps.append(Step(event["decided_us"], "intake", "merged", description, **ids))
        return steps

    def _outcome(self, outcome: dict[str, Any], remote_ids: dict[str, str]) -> Step:
        parts = [outcome["reason"], outcome["detail"]]
        if outcome["what"] == "synced":
            parts = [f"version {outcome['version']}", *parts, remote_ids.get(outcome["stage"], "")]
        if outcome["what"] == "duplicate":
            parts.append(f"at {outcome['topic']}/{outcome['partition']}/{outcome['offset']}")
        description = "; ".join(filter(None, parts))
        return Step(
            outcome["at_us"],
            outcome["stage"],
            outcome["what"],
            description,
            outcome["event_id"],
            outcome["version"],
        )


def _dead_steps(letters: Iterable[dict[str, Any]]) -> list[Step]:
    steps: list[Step] = []
    for letter in letters:
        place = f"kept at leads.dead/{letter['dead_partition']}/{letter['dead_offset']}"
        description = "; ".join(filter(None, (letter["reason"], letter["detail"], place)))
        steps.append(Step(letter["at_us"], letter["stage"], "dead", description, letter["event_id"]))
    return steps


def _remote_ids(crm: Iterable[dict[str, Any]]) -> dict[str, str]:
    return {
        f"crm-{row['destination'].partition(':')[0]}": f"remote id {row['remote_id']}"
        for row in crm
        if row["remote_id"]
    }


def _require_one_tenant(found: Iterable[str]) -> None:
    tenants = sorted(set(found))
    if len(tenants) > 1:
        raise NothingFoundError(f"Several tenants have this id: choose one with --tenant ({', '.join(tenants)}).")


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        return ""
