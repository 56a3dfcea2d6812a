"""All metrics: the name, the description and the labels of each. No other module defines one."""

from prometheus_client import Counter, Gauge, Histogram

# Labels: stage is the consumer group's name (intake, sink-clickhouse, crm-hubspot, ...).
RECORDS = Counter("leadstream_records", "Records whose offsets a stage has committed.", ["stage"])
OUTCOMES = Counter("leadstream_outcomes", "Outcomes, by stage, kind (what) and reason.", ["stage", "what", "reason"])
DEAD_LETTERS = Counter(
    "leadstream_dead_letters", "Dead letters of a stage by sender: at most 50 senders, then other.", ["stage", "sender"]
)
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
WAITING = Gauge(
    "leadstream_waiting",
    "1 while a stage waits for a dependency that is unavailable, or paused by a rate limit or quota.",
    ["stage", "dependency"],
)
REBALANCES = Counter(
    "leadstream_rebalances", "Partitions that were revoked from a worker, or lost by it.", ["stage", "kind"]
)
CAMPAIGNS_INVALID = Gauge(
    "leadstream_campaigns_invalid", "1 while a campaign file is invalid; the last valid campaigns run."
)
# tenant is the name of a file, so there are as many as files.
TENANT_FILE_INVALID = Gauge(
    "leadstream_tenant_file_invalid", "1 while a tenant's file is invalid; its last valid content is used.", ["tenant"]
)
CONTENTION = Counter(
    "leadstream_contention",
    "Transactions that were rolled back because another worker wrote the same rows.",
    ["stage", "what"],
)
ERASURE_OPEN = Gauge(
    "leadstream_erasure_open_seconds", "Age of the oldest erasure that a store has not completed; 0: none.", ["store"]
)
# path is a route's template, such as /v1/schemas/{type}, or "other": a label never has a value from a request.
HTTP_REQUESTS = Counter("leadstream_http_requests", "Requests to the API.", ["path", "status"])
HTTP_EVENTS = Counter("leadstream_http_events", "Events sent to the API, by result.", ["status"])

# librdkafka's statistics, updated every 15 s. client is the process's name, kind is consumer or producer.
_CLIENT = ["client", "kind"]
KAFKA_QUEUE_MESSAGES = Gauge("leadstream_kafka_queue_messages", "Records in the client's queues.", _CLIENT)
KAFKA_QUEUE_BYTES = Gauge("leadstream_kafka_queue_bytes", "Bytes of the records in the client's queues.", _CLIENT)
KAFKA_REQUESTS = Gauge(
    "leadstream_kafka_requests", "Requests to brokers that are queued or have no response yet.", _CLIENT
)
KAFKA_RTT_P99 = Gauge(
    "leadstream_kafka_rtt_p99_seconds", "Round trip time to the slowest broker, 99th percentile.", _CLIENT
)
KAFKA_THROTTLE_P99 = Gauge(
    "leadstream_kafka_throttle_p99_seconds", "Delay that a broker's quota imposes, 99th percentile.", _CLIENT
)
KAFKA_RETRIES = Counter("leadstream_kafka_retries", "Requests that were retried.", _CLIENT)
KAFKA_REQUEST_ERRORS = Counter(
    "leadstream_kafka_request_errors", "Requests and responses that failed on the connection.", _CLIENT
)
KAFKA_REQUEST_TIMEOUTS = Counter(
    "leadstream_kafka_request_timeouts", "Requests without a response within their timeout.", _CLIENT
)
KAFKA_CONNECTS = Counter("leadstream_kafka_connects", "Attempts to connect to a broker.", _CLIENT)
KAFKA_DISCONNECTS = Counter("leadstream_kafka_disconnects", "Connections to brokers that were closed.", _CLIENT)
