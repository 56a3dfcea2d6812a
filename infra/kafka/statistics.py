"""librdkafka's statistics as Prometheus metrics: ten values per client, of the hundreds that it reports.

Source: https://github.com/confluentinc/librdkafka/blob/v2.12.0/STATISTICS.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from prometheus_client import Counter

from infra import metrics

_MICROSECONDS, _MILLISECONDS = 1e-6, 1e-3
_COUNTERS: Mapping[str, tuple[Counter, tuple[str, ...]]] = {
    "retries": (metrics.KAFKA_RETRIES, ("txretries",)),
    "errors": (metrics.KAFKA_REQUEST_ERRORS, ("txerrs", "rxerrs")),
    "timeouts": (metrics.KAFKA_REQUEST_TIMEOUTS, ("req_timeouts",)),
    "connects": (metrics.KAFKA_CONNECTS, ("connects",)),
    "disconnects": (metrics.KAFKA_DISCONNECTS, ("disconnects",)),
}


class Statistics:
    """librdkafka's statistics callback of one client; ``client`` and ``kind`` (consumer or producer) are the labels.

    Counts are summed over the brokers; of durations the slowest broker counts. So the number of time series does not
    depend on the size of the cluster.
    """

    def __init__(self, client: str, kind: str) -> None:
        self._labels = (client, kind)
        self._totals: dict[str, int] = {}

    def __call__(self, text: str) -> None:
        """Handle one report (JSON); librdkafka calls this in the thread that polls."""
        report = orjson.loads(text)
        brokers = list(report.get("brokers", {}).values())
        partitions = [p for topic in report.get("topics", {}).values() for p in topic.get("partitions", {}).values()]
        gauges = {
            metrics.KAFKA_QUEUE_MESSAGES: report.get("msg_cnt", 0) + _sum(partitions, "fetchq_cnt"),
            metrics.KAFKA_QUEUE_BYTES: report.get("msg_size", 0) + _sum(partitions, "fetchq_size"),
            metrics.KAFKA_REQUESTS: _sum(brokers, "outbuf_cnt") + _sum(brokers, "waitresp_cnt"),
            metrics.KAFKA_RTT_P99: _slowest(brokers, "rtt") * _MICROSECONDS,
            metrics.KAFKA_THROTTLE_P99: _slowest(brokers, "throttle") * _MILLISECONDS,
        }
        for gauge, value in gauges.items():
            gauge.labels(*self._labels).set(value)
        for name, (counter, fields) in _COUNTERS.items():
            total = sum(_sum(brokers, field) for field in fields)
            # The total falls when a broker leaves the cluster; then nothing is added.
            counter.labels(*self._labels).inc(max(0, total - self._totals.get(name, 0)))
            self._totals[name] = total


def _sum(parts: Iterable[Mapping[str, Any]], field: str) -> int:
    return sum(max(0, int(part.get(field, 0))) for part in parts)  # -1: unknown


def _slowest(brokers: Iterable[Mapping[str, Any]], window: str) -> float:
    return max((float(broker.get(window, {}).get("p99", 0)) for broker in brokers), default=0.0)
