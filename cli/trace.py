"""``trace ID``: the story of one event or one lead, from its receipt to every system that was told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from infra.clock import to_datetime
from infra.settings import Settings

if TYPE_CHECKING:
    import asyncpg

    from infra.clickhouse.client import ClickHouse

_COORDINATES = re.compile(r"([a-z0-9._-]+)[/ ](\d{1,9})[/ ](\d{1,18})")
_WIDE = 200
_MOST = 500  # newest events of one lead

_EVENTS = """
SELECT tenant, event_type, toString(lead_id) AS lead, version, event_id, source, own, topic, partition, offset, changes,
       arrayMap(x -> toString(x), merged) AS losers, toUnixTimestamp64Micro(occurred_at) AS occurred_us,
       toUnixTimestamp64Micro(received_at) AS received_us, toUnixTimestamp64Micro(decided_at) AS decided_us
FROM lead_events WHERE {where} ORDER BY decided_us DESC, version DESC LIMIT {most}
"""
_OUTCOMES = """
SELECT toUnixTimestamp64Micro(at) AS at_us, stage, what, reason, tenant, event_id, lead_id, version, topic, partition,
       offset, detail
FROM outcomes WHERE {where} ORDER BY at_us
"""
_DEAD = """
SELECT toUnixTimestamp64Micro(at) AS at_us, stage, reason, detail, topic, partition, offset, dead_partition, dead_offset
FROM dead_letters WHERE topic = {topic:String} AND partition = {partition:Int32} AND offset = {offset:Int64}
"""
# A merged lead's survivor, and everybody who became part of it, however many steps it took.
_FAMILY = """
WITH RECURSIVE up AS (
    SELECT $1::uuid AS lead_id UNION SELECT a.lead_id FROM lead_aliases a JOIN up ON a.alias_id = up.lead_id
), family AS (
    SELECT lead_id FROM up UNION SELECT a.alias_id FROM lead_aliases a JOIN family f ON a.lead_id = f.lead_id
)
SELECT l.lead_id, l.tenant, l.version, l.merged_into FROM leads l JOIN family USING (lead_id)
"""
_CRM = """
SELECT destination, wanted_version, synced_version, remote_id, attempts, last_error, synced_at
FROM crm_sync WHERE lead_id = ANY($1::uuid[]) AND (remote_id <> '' OR wanted_version > synced_version)
ORDER BY destination
"""


class Unknown(Exception):  # noqa: N818 - it is an answer, not a mistake
    """Nothing is known of what was asked for; the message says where else to look."""


@dataclass(slots=True)
class Step:
    """One step; ``after_ms`` since the step before it."""

    at: int
    stage: str
    what: str
    said: str
    event_id: str = ""
    version: int = 0
    after_ms: float = 0.0


@dataclass(slots=True)
class Story:
    """What is known. ``kind``: event, lead or record (coordinates of a dead one)."""

    kind: str
    tenant: str = ""
    lead_id: str = ""
    version: int = 0
    merged: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    crm: list[dict[str, Any]] = field(default_factory=list)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(trace)


def trace(
    id_: Annotated[
        str,
        typer.Argument(metavar="ID", help="event_id, lead_id, an identifier (e-mail, …) or topic/partition/offset."),
    ],
    *,
    tenant: Annotated[str, typer.Option(help="Where several tenants have the same identifier or event_id.")] = "",
    values: Annotated[bool, typer.Option(help="Show new values, which may be personal data.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For other tools.")] = False,
) -> None:
    """Tell what became of an event or a lead, step by step; exit 1 when nothing is known of it."""
    try:
        story = asyncio.run(_told(Settings.load(), id_.strip(), tenant, values=values))
    except Unknown as unknown:
        typer.echo(str(unknown), err=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(asdict(story), indent=1))
    else:
        _print(story)


async def _told(settings: Settings, asked: str, tenant: str, *, values: bool) -> Story:
    from infra.clickhouse.client import ClickHouse  # noqa: PLC0415 - only this command needs the clients
    from infra.postgres import pool as postgres  # noqa: PLC0415

    pool = await postgres.connect(settings.database_url, size=1, application="trace")
    async with (
        aclosing(_Closing(pool)),
        ClickHouse(settings.clickhouse_url) as server,
        postgres.connection(pool) as lent,
    ):
        story = await Teller(server, lent, values=values).tell(asked, tenant)
    story.steps.sort(key=lambda step: (step.at, step.version))  # stable: received before accepted
    for before, step in zip(story.steps, story.steps[1:], strict=False):
        step.after_ms = round((step.at - before.at) / 1000, 1)
    return story


class _Closing:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def aclose(self) -> None:
        self._pool.terminate()


class Teller:
    """Puts a story together from the analysts' views and the canonical record."""

    def __init__(self, server: ClickHouse, connection: asyncpg.Connection, *, values: bool) -> None:
        self._server = server
        self._connection = connection
        self._values = values

    async def tell(self, asked: str, tenant: str) -> Story:
        """Return the story of what ``asked`` names, looking for coordinates, events, leads, then identifiers."""
        if found := _COORDINATES.fullmatch(asked):
            return await self._record(found[1], int(found[2]), int(found[3]))
        mine = " AND tenant = {tenant:String}" if tenant else ""
        events = await self._events("event_id = {id:String}" + mine, id=asked, tenant=tenant)
        outcomes = await self._outcomes("event_id = {id:String}" + mine, id=asked, tenant=tenant)
        if events:
            _one_tenant(event["tenant"] for event in events)
            return await self._event(events, outcomes)
        lead_id = _uuid(asked) or await self._identified(asked, tenant)
        if lead_id and (story := await self._lead(lead_id)):
            return story
        if outcomes:
            return Story("event", outcomes[0]["tenant"], steps=[self._outcome(o, {}) for o in outcomes])
        raise Unknown(
            "Nothing is known of it. It may not be decided yet (leadstream lag), or have been dead on arrival "
            "(leadstream dead list; then trace it by topic/partition/offset)."
        )

    async def _record(self, topic: str, partition: int, offset: int) -> Story:
        at = {"topic": topic, "partition": partition, "offset": offset}
        where = "topic = {topic:String} AND partition = {partition:Int32} AND offset = {offset:Int64}"
        if events := await self._events(where, **at):
            mine = "event_id = {id:String} AND tenant = {tenant:String}"
            event = events[0]
            return await self._event(events, await self._outcomes(mine, id=event["event_id"], tenant=event["tenant"]))
        outcomes = await self._outcomes(where, **at)
        dead = await self._server.query(_DEAD, **at)
        if not outcomes and not dead:
            raise Unknown("Nothing is known of that record: it may not be decided yet (leadstream lag).")
        steps = [self._outcome(o, {}) for o in outcomes if not (dead and o["what"] == "dead")]
        for letter in dead:
            where = f"kept at leads.dead/{letter['dead_partition']}/{letter['dead_offset']}"
            said = "; ".join(filter(None, (letter["reason"], letter["detail"], where)))
            steps.append(Step(letter["at_us"], letter["stage"], "dead", said))
        return Story("record", steps=steps)

    async def _event(self, events: Sequence[dict[str, Any]], outcomes: Sequence[dict[str, Any]]) -> Story:
        event = events[0]
        story = await self._head("event", event["lead"], event["tenant"])
        remote = _remote_ids(story.crm)
        story.steps = [step for each in events for step in self._accepted(each)]
        story.steps += [self._outcome(o, remote) for o in outcomes]
        where = "lead_id = {lead:String} AND event_id = '' AND version >= {version:Int64}"
        later = await self._outcomes(where, lead=event["lead"], version=event["version"])
        # Of what a stage said about the lead as a whole, up to the first time that it had this version done.
        done: set[str] = set()
        for outcome in later:
            if outcome["stage"] not in done:
                story.steps.append(self._outcome(outcome, remote))
            if outcome["what"] != "parked":
                done.add(outcome["stage"])
        return story

    async def _lead(self, lead_id: str) -> Story | None:
        story = await self._head("lead", lead_id, "")
        family = [story.lead_id, *story.merged]
        events = await self._events("lead_id IN {ids:Array(UUID)}", ids=family)
        outcomes = await self._outcomes("lead_id IN {ids:Array(String)}", ids=family)
        if not story.version and not events and not outcomes:
            return None
        remote = _remote_ids(story.crm)
        story.tenant = story.tenant or (events[0]["tenant"] if events else "")
        told = {event["event_id"] for event in events}
        # An id with a quote or a backslash in it would need its own spelling in an array: trace that event by itself.
        plain = [event_id for event_id in told if not {"'", "\\"} & set(event_id)]
        duplicates = await self._outcomes("event_id IN {ids:Array(String)} AND lead_id = ''", ids=plain)
        story.steps = [step for event in events for step in self._accepted(event)]
        story.steps += [self._outcome(o, remote) for o in (*outcomes, *duplicates)]
        return story

    async def _head(self, kind: str, lead_id: str, tenant: str) -> Story:
        rows = await self._connection.fetch(_FAMILY, UUID(lead_id))
        survivor = next((row for row in rows if row["merged_into"] is None), None)
        story = Story(kind, tenant, lead_id)
        if survivor is not None:
            story.tenant, story.lead_id, story.version = (
                survivor["tenant"],
                str(survivor["lead_id"]),
                survivor["version"],
            )
            story.merged = sorted(str(row["lead_id"]) for row in rows if row["merged_into"] is not None)
        for row in await self._connection.fetch(_CRM, [UUID(story.lead_id)]):
            synced_at = to_datetime(row["synced_at"]).isoformat() if row["synced_at"] else None
            story.crm.append(dict(row) | {"synced_at": synced_at})
        return story

    async def _identified(self, value: str, tenant: str) -> str:
        rows = await self._connection.fetch(
            "SELECT DISTINCT tenant, lead_id FROM identities WHERE value = ANY($1) AND ($2 = '' OR tenant = $2)",
            [value, value.lower()],
            tenant,
        )
        _one_tenant(row["tenant"] for row in rows)
        return str(rows[0]["lead_id"]) if rows else ""

    async def _events(self, where: str, **params: Any) -> list[dict[str, Any]]:
        return await self._server.query(_EVENTS.replace("{where}", where).replace("{most}", str(_MOST)), **params)

    async def _outcomes(self, where: str, **params: Any) -> list[dict[str, Any]]:
        return await self._server.query(_OUTCOMES.replace("{where}", where), **params)

    def _accepted(self, event: dict[str, Any]) -> list[Step]:
        about = {"event_id": event["event_id"], "version": event["version"]}
        where = f"{event['topic']}/{event['partition']}/{event['offset']}"
        came = f"{event['event_type']} from {event['source']} at {where}"
        steps = [Step(event["received_us"], "kafka", "received", came, **about)]
        changes: dict[str, Any] = json.loads(event["changes"] or "{}")
        named = ", ".join(f"{k}={v}" if self._values else k for k, v in changes.items()) or "nothing"
        said = f"version {event['version']}; changed {named}"
        steps.append(Step(event["decided_us"], "intake", "accepted", said, **about))
        if event["losers"]:
            said = f"{', '.join(event['losers'])} became part of {event['lead']}"
            steps.append(Step(event["decided_us"], "intake", "merged", said, **about))
        return steps

    def _outcome(self, outcome: dict[str, Any], remote: dict[str, str]) -> Step:
        words = [outcome["reason"], outcome["detail"]]
        if outcome["what"] == "synced":
            words = [f"version {outcome['version']}", *words, remote.get(outcome["stage"], "")]
        if outcome["what"] == "duplicate":
            words.append(f"at {outcome['topic']}/{outcome['partition']}/{outcome['offset']}")
        said = "; ".join(filter(None, words))
        return Step(outcome["at_us"], outcome["stage"], outcome["what"], said, outcome["event_id"], outcome["version"])


def _remote_ids(crm: Iterable[dict[str, Any]]) -> dict[str, str]:
    return {f"crm-{row['destination']}": f"remote id {row['remote_id']}" for row in crm if row["remote_id"]}


def _one_tenant(found: Iterable[str]) -> None:
    tenants = sorted(set(found))
    if len(tenants) > 1:
        raise Unknown(f"Several tenants have it; give --tenant: {', '.join(tenants)}")


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        return ""


def _print(story: Story) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDE)  # into a file or a pipe: whole lines
    if story.lead_id:
        console.print(f"lead {story.lead_id} of {story.tenant}, version {story.version}", markup=False)
    if story.merged:
        console.print(f"with {', '.join(story.merged)} merged into it", markup=False)
    table = Table("time", "", "stage", "what", "", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[:4]:
        column.no_wrap = True
    table.columns[1].justify = "right"
    table.columns[4].overflow = "fold"
    for step in story.steps:
        at = datetime.fromtimestamp(step.at / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        table.add_row(at, _since(step.after_ms), step.stage, step.what, step.said)
    console.print(table, markup=False)
    for row in story.crm:
        state = "in step" if row["synced_version"] >= row["wanted_version"] else f"waits: {row['last_error'] or 'due'}"
        versions = f"has version {row['synced_version']} of {row['wanted_version']}"
        console.print(
            f"{row['destination']}: {versions}, {state}, remote id {row['remote_id'] or 'none'}", markup=False
        )


def _since(milliseconds: float) -> str:
    if not milliseconds:
        return ""
    return f"+{milliseconds:,.1f} ms" if milliseconds < 1000 else f"+{milliseconds / 1000:,.1f} s"  # noqa: PLR2004
