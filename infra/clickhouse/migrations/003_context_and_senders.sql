-- The context of each event (UTM parameters, page, user agent), and the event and the sender of each dead letter.

ALTER TABLE landing_lead_change ADD COLUMN IF NOT EXISTS context Map(String, String);
ALTER TABLE lead_events_store ADD COLUMN IF NOT EXISTS context Map(LowCardinality(String), String) CODEC(ZSTD);
ALTER TABLE lead_events_view MODIFY QUERY
SELECT tenant, event_type, occurred_at, toUUID(lead_id) AS lead_id, version, event_id, source, own, received_at,
       decided_at, topic, partition, offset, properties, changes, arrayMap(x -> toUUID(x), merged) AS merged,
       context
FROM landing_lead_change;
CREATE OR REPLACE VIEW lead_events AS
SELECT * FROM lead_events_store FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

ALTER TABLE landing_dead_letter ADD COLUMN IF NOT EXISTS tenant String;
ALTER TABLE landing_dead_letter ADD COLUMN IF NOT EXISTS event_id String;
ALTER TABLE landing_dead_letter ADD COLUMN IF NOT EXISTS sender String;
ALTER TABLE dead_letters_store ADD COLUMN IF NOT EXISTS tenant LowCardinality(String);
ALTER TABLE dead_letters_store ADD COLUMN IF NOT EXISTS event_id String CODEC(ZSTD);
ALTER TABLE dead_letters_store ADD COLUMN IF NOT EXISTS sender LowCardinality(String);
ALTER TABLE dead_letters_store ADD INDEX IF NOT EXISTS by_event_id event_id TYPE bloom_filter(0.01) GRANULARITY 1;
ALTER TABLE dead_letters_view MODIFY QUERY SELECT * FROM landing_dead_letter;
CREATE OR REPLACE VIEW dead_letters AS SELECT * FROM dead_letters_store FINAL;
