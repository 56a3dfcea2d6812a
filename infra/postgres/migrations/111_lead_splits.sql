-- Merges that were undone (`leadstream leads split`), by the event undone_by.
ALTER TABLE lead_merges ADD COLUMN undone_at timestamptz, ADD COLUMN undone_by text;
CREATE INDEX lead_merges_loser ON lead_merges (loser_id);

-- Leads that a split separated: no event merges them again, only `leadstream leads merge`. Each pair has two rows. A
-- lead of a pair may have been merged into another one since: lead_aliases has that.
CREATE TABLE leads_apart (
    lead_id  uuid        NOT NULL,
    other_id uuid        NOT NULL,
    tenant   text        NOT NULL,
    event_id text        NOT NULL,
    since    timestamptz NOT NULL,
    PRIMARY KEY (lead_id, other_id)
);

-- Whether an identity of this lead can have been moved to another one by a split since it was looked up.
ALTER TABLE leads ADD COLUMN split boolean NOT NULL DEFAULT false;

SELECT protect_tenant_rows();
