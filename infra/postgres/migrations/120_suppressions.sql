-- The suppression list: identities of erased leads, as keyed hashes. An event with one of them is refused, unless it is
-- the person's own new consent. The erased lead itself stays, without values and identities.
CREATE TABLE suppressions (
    tenant    text        NOT NULL,
    hash      bytea       NOT NULL, -- streams/intake/suppression_key.py: of tenant, kind and value
    kind      text        NOT NULL,
    lead_id   uuid        NOT NULL, -- the erased lead
    event_id  text        NOT NULL, -- of the erasure
    erased_at timestamptz NOT NULL, -- time of the erasure, for precedence: what was said until then is refused for ever
    lifted_at timestamptz,          -- time of the person's new consent; null: none
    PRIMARY KEY (tenant, hash)
);
CREATE INDEX suppressions_lead ON suppressions (lead_id);

-- The key of these hashes. One row. key: null if it is the setting LEADSTREAM_SUPPRESSION_KEY; check_hash: recognises
-- it, so that intake does not run with another one.
CREATE TABLE suppression_key (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    key        bytea,
    check_hash bytea NOT NULL
);

-- Where an erased lead was removed: one row a lead and store, written with the erasure by intake, as leased work of the
-- follower of each store (infra/postgres/leased_table.py). Stores: leads (the canonical record, removed with the erasure
-- itself), work (cached enrichment, open requests, messages), clickhouse, crm-<name>.
CREATE TABLE erasures (
    store           text        NOT NULL,
    lead_id         uuid        NOT NULL,
    tenant          text        NOT NULL,
    event_id        text        NOT NULL,
    version         bigint      NOT NULL, -- of the lead, made by the erasure
    erased_at       timestamptz NOT NULL, -- time of the erasure, for precedence
    decided_at      timestamptz NOT NULL,
    done_at         timestamptz,
    detail          text        NOT NULL DEFAULT '', -- what was done, without values
    attempts        int         NOT NULL DEFAULT 0,
    last_error      text        NOT NULL DEFAULT '',
    next_attempt_at timestamptz NOT NULL,
    claimed_until   timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (store, lead_id)
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX erasures_due ON erasures (store, next_attempt_at) WHERE done_at IS NULL;
CREATE INDEX erasures_done ON erasures (done_at);
CREATE INDEX erasures_lead ON erasures (lead_id, decided_at);

-- Finds leads that were erased before this table existed: intake removes what is left of them at its next start.
CREATE INDEX leads_erased ON leads (lead_id) WHERE erased_at IS NOT NULL;

SELECT protect_tenant_rows();
