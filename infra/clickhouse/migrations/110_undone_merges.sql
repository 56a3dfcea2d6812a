-- Merges can be undone: a lead that was merged may exist again. So whether a lead is merged is stored apart from the
-- leads, by the version of the survivor that merged or split it: what happened last counts, in whatever order it
-- arrives. Before, a merge replaced the lead's row for ever.
CREATE TABLE IF NOT EXISTS lead_merges_store (
    tenant LowCardinality(String),
    lead_id UUID,
    survivor_id UUID,
    version Int64,
    active Bool
) ENGINE = ReplacingMergeTree(version)
ORDER BY (tenant, lead_id, survivor_id)
SETTINGS non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS lead_merges_view TO lead_merges_store AS
SELECT tenant, toUUID(arrayJoin(merged)) AS lead_id, toUUID(landing_lead_change.lead_id) AS survivor_id, version,
       true AS active
FROM landing_lead_change WHERE notEmpty(merged);

-- A split changes both leads; the change of the survivor has the version.
CREATE MATERIALIZED VIEW IF NOT EXISTS lead_splits_view TO lead_merges_store AS
SELECT tenant, toUUID(lower(JSONExtractString(properties, 'other_lead_id'))) AS lead_id,
       toUUID(landing_lead_change.lead_id) AS survivor_id, version, false AS active
FROM landing_lead_change
WHERE event_type = 'lead_split' AND lower(JSONExtractString(properties, 'lead_id')) = lower(landing_lead_change.lead_id);

DROP VIEW IF EXISTS leads_merged_view;
INSERT INTO lead_merges_store (tenant, lead_id, survivor_id, version, active)
SELECT tenant, lead_id, toUUIDOrZero(merged_into), 0, true FROM leads_store FINAL WHERE merged_into != '';
ALTER TABLE leads_store DELETE WHERE merged_into != '' SETTINGS mutations_sync = 1;

CREATE OR REPLACE VIEW leads AS
SELECT * FROM leads_store FINAL
WHERE (tenant, lead_id) NOT IN (SELECT tenant, lead_id FROM lead_merges_store FINAL WHERE active);

-- See 004: one row a merged lead, with the lead that it is part of now, at the end of its chain of merges.
CREATE OR REPLACE VIEW lead_survivors AS
WITH RECURSIVE
    merges AS (SELECT tenant, lead_id, survivor_id FROM lead_merges_store FINAL WHERE active),
    chain AS (
        SELECT tenant, lead_id, survivor_id, 1 AS depth FROM merges
        UNION ALL
        SELECT chain.tenant AS tenant, chain.lead_id AS lead_id, merges.survivor_id AS survivor_id, depth + 1 AS depth
        FROM chain INNER JOIN merges ON merges.tenant = chain.tenant AND merges.lead_id = chain.survivor_id
        WHERE depth < 500
    )
SELECT tenant, lead_id, survivor_id FROM chain WHERE (tenant, survivor_id) NOT IN (SELECT tenant, lead_id FROM merges);
