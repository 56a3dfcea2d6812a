-- Who did what to which event or lead, and what could not be taken.

CREATE TABLE IF NOT EXISTS landing_outcome (
    at DateTime64(6, 'UTC'), stage String, what String, reason String, tenant String, event_id String, lead_id String,
    version Int64, topic String, partition Int32, offset Int64, detail String
) ENGINE = Null;

CREATE TABLE IF NOT EXISTS outcomes_store (
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    stage LowCardinality(String), what LowCardinality(String), reason LowCardinality(String),
    tenant LowCardinality(String), event_id String CODEC(ZSTD), lead_id String CODEC(ZSTD), version Int64,
    topic LowCardinality(String), partition Int32, offset Int64, detail String CODEC(ZSTD),
    INDEX by_event_id event_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_lead_id lead_id TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = ReplacingMergeTree
ORDER BY (stage, what, topic, partition, offset, lead_id, version, event_id, reason)
TTL toDateTime(at) + INTERVAL 12 MONTH
SETTINGS non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS outcomes_view TO outcomes_store AS SELECT * FROM landing_outcome;

CREATE VIEW IF NOT EXISTS outcomes AS SELECT * FROM outcomes_store FINAL;

CREATE TABLE IF NOT EXISTS landing_dead_letter (
    at DateTime64(6, 'UTC'), stage String, reason String, detail String, topic String, partition Int32, offset Int64,
    dead_partition Int32, dead_offset Int64, size Int64
) ENGINE = Null;

CREATE TABLE IF NOT EXISTS dead_letters_store (
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    stage LowCardinality(String), reason LowCardinality(String), detail String CODEC(ZSTD),
    topic LowCardinality(String), partition Int32, offset Int64, dead_partition Int32, dead_offset Int64, size Int64
) ENGINE = ReplacingMergeTree
ORDER BY (stage, topic, partition, offset)
TTL toDateTime(at) + INTERVAL 12 MONTH
SETTINGS non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS dead_letters_view TO dead_letters_store AS SELECT * FROM landing_dead_letter;

CREATE VIEW IF NOT EXISTS dead_letters AS SELECT * FROM dead_letters_store FINAL;
