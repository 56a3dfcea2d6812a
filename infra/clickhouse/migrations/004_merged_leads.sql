-- After a merge, the events of the merged lead belong to its survivor: lead_events.lead_id is the survivor's id, which
-- joins with leads. original_lead_id is the lead that the event was recorded for; with version it identifies the event.
-- Both views resolve at query time, so the order in which merges and events arrive is of no importance.

-- One row a merged lead: the lead that it is part of now, at the end of its chain of merges. depth ends a cycle, which
-- only wrong data can have; a lead in one keeps its own id.
CREATE OR REPLACE VIEW lead_survivors AS
WITH RECURSIVE
    merges AS (
        SELECT tenant, lead_id, toUUIDOrZero(merged_into) AS survivor_id FROM leads_store FINAL WHERE merged_into != ''
    ),
    chain AS (
        SELECT tenant, lead_id, survivor_id, 1 AS depth FROM merges
        UNION ALL
        SELECT chain.tenant AS tenant, chain.lead_id AS lead_id, merges.survivor_id AS survivor_id, depth + 1 AS depth
        FROM chain INNER JOIN merges ON merges.tenant = chain.tenant AND merges.lead_id = chain.survivor_id
        WHERE depth < 500
    )
SELECT tenant, lead_id, survivor_id FROM chain WHERE (tenant, survivor_id) NOT IN (SELECT tenant, lead_id FROM merges);

-- nullIf: without a match the joined column is zero, or null if the reader has set join_use_nulls.
CREATE OR REPLACE VIEW lead_events AS
SELECT e.* REPLACE (
           ifNull(nullIf(s.survivor_id, toUUID('00000000-0000-0000-0000-000000000000')), e.lead_id) AS lead_id
       ),
       e.lead_id AS original_lead_id
FROM lead_events_store AS e FINAL
LEFT ANY JOIN lead_survivors AS s ON s.tenant = e.tenant AND s.lead_id = e.lead_id
SETTINGS do_not_merge_across_partitions_select_final = 1;
