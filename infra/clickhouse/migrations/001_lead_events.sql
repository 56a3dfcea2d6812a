-- What comes in lands in tables of ENGINE = Null, shaped like the Avro records (the sink never decodes them);
-- materialized views shape the rows. A crash of intake or of the sink repeats rows, so the stores replace rows of the
-- same identity and readers use the views under the public names, which never show a row twice.

CREATE TABLE IF NOT EXISTS landing_lead_change (
    tenant String, event_id String, event_type String, source String, own Bool, lead_id String, version Int64,
    occurred_at DateTime64(6, 'UTC'), received_at DateTime64(6, 'UTC'), decided_at DateTime64(6, 'UTC'),
    topic String, partition Int32, offset Int64, properties String, changes String, merged Array(String), lead String
) ENGINE = Null;

-- One row an accepted event. Its identity, (lead_id, version), and all of the key and the partition repeat exactly
-- when intake tells it again.
CREATE TABLE IF NOT EXISTS lead_events_store (
    tenant LowCardinality(String),
    event_type LowCardinality(String),
    occurred_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    lead_id UUID,
    version Int64,
    event_id String CODEC(ZSTD),
    source LowCardinality(String),
    own Bool,
    received_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    decided_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    topic LowCardinality(String),
    partition Int32,
    offset Int64 CODEC(Delta, ZSTD),
    properties String CODEC(ZSTD),
    changes String CODEC(ZSTD),
    merged Array(UUID),
    inserted_at DateTime64(6, 'UTC') DEFAULT now64(6),
    INDEX by_event_id event_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_lead_id lead_id TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(decided_at)
ORDER BY (tenant, event_type, toStartOfHour(occurred_at), lead_id, version)
SETTINGS non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS lead_events_view TO lead_events_store AS
SELECT tenant, event_type, occurred_at, toUUID(lead_id) AS lead_id, version, event_id, source, own, received_at,
       decided_at, topic, partition, offset, properties, changes, arrayMap(x -> toUUID(x), merged) AS merged
FROM landing_lead_change;

CREATE VIEW IF NOT EXISTS lead_events AS
SELECT * FROM lead_events_store FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

-- The current state of each lead: the newest version wins; a lead that became part of another is gone.
CREATE TABLE IF NOT EXISTS leads_store (
    tenant LowCardinality(String),
    lead_id UUID,
    version Int64,
    merged_into String,
    created_at DateTime64(6, 'UTC'),
    updated_at DateTime64(6, 'UTC'),
    external_id String, email String, phone String, first_name String, last_name String, company String,
    domain String, title String,
    country LowCardinality(String), region LowCardinality(String), industry LowCardinality(String),
    employees Nullable(Int64),
    status LowCardinality(String), owner LowCardinality(String),
    score Nullable(Float64),
    first_touch_at DateTime64(6, 'UTC'), first_touch_source LowCardinality(String),
    last_touch_at DateTime64(6, 'UTC'), last_touch_source LowCardinality(String),
    consent Map(String, String), crm_ids Map(String, String), custom Map(String, String)
) ENGINE = ReplacingMergeTree(version)
ORDER BY (tenant, lead_id)
SETTINGS non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS leads_view TO leads_store AS
WITH JSONExtract(lead, 'Tuple(version Int64, merged_into String, created_at Int64, updated_at Int64, external_id String,
    email String, phone String, first_name String, last_name String, company String, domain String, title String,
    country String, region String, industry String, employees Nullable(Int64), status String, owner String,
    score Nullable(Float64), first_touch_at Int64, first_touch_source String, last_touch_at Int64,
    last_touch_source String, consent Map(String, String), crm_ids Map(String, String), custom Map(String, String))') AS l
SELECT tenant, toUUID(lead_id) AS lead_id, l.version AS version, l.merged_into AS merged_into,
       fromUnixTimestamp64Micro(l.created_at, 'UTC') AS created_at,
       fromUnixTimestamp64Micro(l.updated_at, 'UTC') AS updated_at,
       l.external_id AS external_id, l.email AS email, l.phone AS phone, l.first_name AS first_name,
       l.last_name AS last_name, l.company AS company, l.domain AS domain, l.title AS title, l.country AS country,
       l.region AS region, l.industry AS industry, l.employees AS employees, l.status AS status, l.owner AS owner,
       l.score AS score,
       fromUnixTimestamp64Micro(l.first_touch_at, 'UTC') AS first_touch_at, l.first_touch_source AS first_touch_source,
       fromUnixTimestamp64Micro(l.last_touch_at, 'UTC') AS last_touch_at, l.last_touch_source AS last_touch_source,
       l.consent AS consent, l.crm_ids AS crm_ids, l.custom AS custom
FROM landing_lead_change;

CREATE MATERIALIZED VIEW IF NOT EXISTS leads_merged_view TO leads_store AS
SELECT tenant, toUUID(arrayJoin(merged)) AS lead_id, 9223372036854775807 AS version,
       landing_lead_change.lead_id AS merged_into, decided_at AS updated_at
FROM landing_lead_change WHERE notEmpty(merged);

CREATE VIEW IF NOT EXISTS leads AS SELECT * FROM leads_store FINAL WHERE merged_into = '';
