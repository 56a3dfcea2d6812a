"""Every metric's name, what it counts and its labels, once."""

from prometheus_client import Counter, Gauge, Histogram

# Labels: stage is the consumer group's name (intake, sink-clickhouse, crm-hubspot, ...).
RECORDS = Counter("leadstream_records", "Records whose offsets a stage has committed.", ["stage"])
OUTCOMES = Counter("leadstream_outcomes", "Outcomes by stage, what and reason.", ["stage", "what", "reason"])
BATCH_SECONDS = Histogram(
    "leadstream_batch_seconds",
    "Duration of one step (prepare, apply, deliver, commit) of one batch.",
    ["stage", "step"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
BATCH_RECORDS = Histogram(
    "leadstream_batch_records",
    "Records in one batch.",
    ["stage"],
    buckets=(1, 10, 100, 500, 1000, 2000, 10_000, 50_000),
)
WAITING = Gauge("leadstream_waiting", "1 while a stage waits for a dependency that is away.", ["stage", "dependency"])
CAMPAIGNS_INVALID = Gauge(
    "leadstream_campaigns_invalid", "1 while the campaign files have a problem; the last valid ones run."
)
REBALANCES = Counter("leadstream_rebalances", "Partitions taken from a worker (revoked, lost).", ["stage", "kind"])
CONTENTION = Counter(
    "leadstream_contention",
    "Transactions that were rolled back because another worker wrote the same rows.",
    ["stage", "what"],
)
HTTP_REQUESTS = Counter("leadstream_http_requests", "Requests to the front door.", ["path", "status"])
HTTP_EVENTS = Counter("leadstream_http_events", "Events offered to the front door.", ["status"])
