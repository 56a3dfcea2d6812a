-- Identities that were not assigned to the lead of their event: for `leadstream leads review`.
-- why: shared (holder_id has the identity and is another identified lead) or cap (the lead has its maximum number of
-- identities of this kind; value is empty, so that there is one row for all).
CREATE TABLE merge_reviews (
    lead_id    uuid        NOT NULL,
    kind       text        NOT NULL,
    value      text        NOT NULL,
    tenant     text        NOT NULL,
    holder_id  uuid,
    why        text        NOT NULL,
    event_id   text        NOT NULL, -- the first such event
    refused_at timestamptz NOT NULL,
    closed_at  timestamptz,          -- somebody has decided
    PRIMARY KEY (lead_id, kind, value)
);
CREATE INDEX merge_reviews_open ON merge_reviews (tenant, kind, value) WHERE closed_at IS NULL;

SELECT protect_tenant_rows();
