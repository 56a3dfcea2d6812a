"""Reads the demo's counts, each from the store that it is about: Kafka, Postgres, ClickHouse or a simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import httpx
from confluent_kafka import TopicPartition

from infra.clickhouse.client import ClickHouse
from infra.kafka.client import metadata, reader
from infra.kafka_settings import KafkaSettings
from operations.lag import LagReader

_OWN_SOURCES = "leadstream:%"  # sources of events that the pipeline itself produces
_TOPIC = "leads.received"


class StoreReader:
    """Reads counts of one ``tenant`` from the stores. ``places`` is the state of the stack: addresses by part."""

    def __init__(
        self, tenant: str, pool: asyncpg.Pool, server: ClickHouse, places: Mapping[str, Any], settings: KafkaSettings
    ) -> None:
        self._tenant = tenant
        self._pool = pool
        self._server = server
        self._places = places
        self._settings = settings
        self._lag = LagReader(settings)
        self._start: dict[int, int] = {}
        self._before: dict[str, int] = {}

    async def read_baseline(self) -> None:
        """Read the end offsets and the simulators' counts before the first event is sent; later counts exclude them."""
        self._start = await asyncio.to_thread(self._ends)
        self._before = await self._simulators()

    async def read_progress(self) -> dict[str, int]:
        """Return a few counts that are cheap enough to read twice a second."""
        row = await self._pool.fetchrow(
            """
            SELECT (SELECT count(*) FROM lead_history WHERE tenant = $1),
                   (SELECT count(*) FROM leads WHERE tenant = $1 AND merged_into IS NULL),
                   (SELECT count(*) FROM crm_sync WHERE tenant = $1 AND synced_version >= wanted_version),
                   (SELECT count(*) FROM messages_sent WHERE tenant = $1 AND state = 'sent')
            """,
            self._tenant,
        )
        return dict(zip(("accepted", "leads", "synced", "messages"), row, strict=True))

    async def read_pending(self) -> dict[str, int]:
        """Return the counts above zero of unfinished work: lag by consumer group, CRM syncs that are due, messages."""
        groups = await asyncio.to_thread(self._lag.totals)
        pending = {name: lag.messages for name, lag in groups.items() if lag.messages}
        row = await self._pool.fetchrow(
            """
            SELECT (SELECT count(*) FROM crm_sync WHERE tenant = $1 AND synced_version < wanted_version
                                                        AND next_attempt_at < 'infinity'),
                   (SELECT count(*) FROM messages_sent WHERE tenant = $1
                                                            AND state IN ('waiting', 'claimed', 'sending'))
            """,
            self._tenant,
        )
        return pending | {name: n for name, n in zip(("crm_sync", "messages_sent"), row, strict=True) if n}

    async def read_counts(self, sent_at: Mapping[str, float]) -> dict[str, Any]:
        """Return the final counts and latencies.

        Args:
            sent_at: event_id -> when the event was first sent, in seconds since 1970.

        """
        simulators = await self._simulators()
        ends = await asyncio.to_thread(self._ends)
        counts = await self._postgres()
        counts |= await self._clickhouse()
        produced = sum(end - self._start.get(partition, 0) for partition, end in ends.items())
        counts["received"] = produced - counts["own_events"] - counts.pop("own_duplicates")
        counts["messages_duplicate"] = simulators["smtp_duplicates"] - self._before["smtp_duplicates"]
        counts["crm"]["hubspot"]["remote_records"] = simulators["hubspot"] - self._before["hubspot"]
        counts["mails_received"] = simulators["smtp_unique"] - self._before["smtp_unique"]
        counts["latency_ms"] = await self._latencies(sent_at)
        counts["lag_left"] = sum((await self.read_pending()).values())
        return counts

    def _ends(self) -> dict[int, int]:
        consumer = reader(self._settings, "leadstream-demo")
        try:
            partitions = metadata(consumer, _TOPIC, timeout_s=10).topics[_TOPIC].partitions
            return {p: consumer.get_watermark_offsets(TopicPartition(_TOPIC, p), 10)[1] for p in partitions}
        finally:
            consumer.close()

    async def _simulators(self) -> dict[str, int]:
        async with httpx.AsyncClient(trust_env=False) as http:
            crm = (await http.get(f"{self._places['hubspot']['url']}/_simulator/stats")).json()
            mail = (await http.get(f"{self._places['smtp']['inbox']}/_simulator/stats")).json()
        return {"hubspot": crm["records"], "smtp_duplicates": mail["duplicates"], "smtp_unique": mail["unique"]}

    async def _postgres(self) -> dict[str, Any]:
        row = await self._pool.fetchrow(
            """
            SELECT (SELECT count(*) FROM lead_history WHERE tenant = $1 AND source NOT LIKE $2) AS accepted,
                   (SELECT count(*) FROM lead_history WHERE tenant = $1 AND source LIKE $2) AS own_events,
                   (SELECT count(*) FROM leads WHERE tenant = $1 AND merged_into IS NULL) AS leads,
                   (SELECT count(*) FROM leads WHERE tenant = $1 AND merged_into IS NOT NULL) AS merged,
                   (SELECT count(*) FROM leads WHERE tenant = $1 AND merged_into IS NULL AND erased_at IS NOT NULL
                    AND attributes = '{}') AS erased,
                   (SELECT count(*) FROM messages_sent WHERE tenant = $1 AND state = 'sent') AS messages_sent,
                   (SELECT count(DISTINCT coalesce(a.lead_id, h.lead_id))
                    FROM lead_history h LEFT JOIN lead_aliases a ON a.alias_id = h.lead_id
                    WHERE h.tenant = $1 AND h.source LIKE $2 AND h.event_type = 'enrichment_completed') AS enriched
            """,
            self._tenant,
            _OWN_SOURCES,
        )
        crm = await self._pool.fetchrow(
            """
            SELECT count(*) AS wanted, count(*) FILTER (WHERE synced_version >= wanted_version) AS synced,
                   count(*) FILTER (WHERE synced_version < wanted_version) AS parked
            FROM crm_sync WHERE tenant = $1 AND destination = 'hubspot'
            """,
            self._tenant,
        )
        return dict(row) | {"crm": {"hubspot": dict(crm)}}

    async def _clickhouse(self) -> dict[str, Any]:
        start = ", ".join(f"{partition}: {offset}" for partition, offset in self._start.items())
        rows = await self._server.query(
            f"""
            SELECT (SELECT count() FROM lead_events WHERE tenant = {{t:String}} AND NOT own) AS clickhouse_events,
                   (SELECT count() FROM lead_events WHERE tenant = {{t:String}} AND own) AS clickhouse_own_events,
                   (SELECT count() FROM leads WHERE tenant = {{t:String}}) AS clickhouse_leads,
                   (SELECT countIf(event_id LIKE 'demo-%') FROM outcomes
                    WHERE tenant = {{t:String}} AND stage = 'intake' AND what = 'duplicate') AS duplicates,
                   (SELECT countIf(event_id NOT LIKE 'demo-%') FROM outcomes
                    WHERE tenant = {{t:String}} AND stage = 'intake' AND what = 'duplicate') AS own_duplicates,
                   (SELECT count() FROM dead_letters WHERE stage = 'intake' AND topic = '{_TOPIC}'
                    AND reason != 'suppressed' -- answers about leads that were erased in the meantime
                    AND offset >= CAST(map({start.replace(":", ",")}), 'Map(Int32, Int64)')[partition]) AS dead
            """,  # noqa: S608 - only integers are inserted
            t=self._tenant,
        )
        return {name: int(value) for name, value in rows[0].items()}

    async def _latencies(self, sent_at: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Return the quantiles of the time from sending an event to its commit in each store, in milliseconds."""
        committed = await self._pool.fetch(
            """
            SELECT event_id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM lead_history
            WHERE tenant = $1 AND source NOT LIKE $2
            """,
            self._tenant,
            _OWN_SOURCES,
        )
        inserted = await self._server.query(
            "SELECT event_id, toFloat64(inserted_at) AS at FROM lead_events WHERE tenant = {t:String} AND NOT own",
            t=self._tenant,
        )
        synced = await self._pool.fetch(
            """
            SELECT h.event_id, extract(epoch FROM s.synced_at)::float8 FROM crm_sync s
            JOIN lead_history h ON h.lead_id = s.lead_id AND h.version = s.synced_version
            WHERE s.tenant = $1 AND s.synced_at IS NOT NULL
            """,
            self._tenant,
        )
        return {
            "postgres": _quantiles(sent_at, [(r[0], r[1]) for r in committed]),
            "clickhouse": _quantiles(sent_at, [(r["event_id"], r["at"]) for r in inserted]),
            "crm": _quantiles(sent_at, [(r[0], r[1]) for r in synced]),
        }

    async def read_examples(self) -> list[dict[str, Any]]:
        """Return the three leads with the most changes, each with its first events."""
        rows = await self._pool.fetch(
            """
            SELECT lead_id::text, version, attributes->>'company' AS company, attributes->>'status' AS status
            FROM leads WHERE tenant = $1 AND merged_into IS NULL ORDER BY version DESC, lead_id LIMIT 3
            """,
            self._tenant,
        )
        examples = []
        for row in rows:
            steps = await self._pool.fetch(
                "SELECT version, event_type, source FROM lead_history WHERE lead_id = $1 ORDER BY version LIMIT 6",
                row["lead_id"],
            )
            examples.append(dict(row) | {"steps": [f"{s['version']} {s['event_type']} ({s['source']})" for s in steps]})
        return examples

    def close(self) -> None:
        """Close the Kafka clients."""
        self._lag.close()


def _quantiles(sent_at: Mapping[str, float], committed_at: Sequence[tuple[str, float]]) -> dict[str, float]:
    latencies = sorted((at - sent_at[event_id]) * 1000 for event_id, at in committed_at if event_id in sent_at)
    if not latencies:
        return {"p50": 0.0, "p99": 0.0}
    return {name: round(latencies[int(q * (len(latencies) - 1))], 1) for name, q in (("p50", 0.5), ("p99", 0.99))}
