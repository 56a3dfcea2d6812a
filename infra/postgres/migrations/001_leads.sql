-- The canonical record. Intake is the only writer of these tables.

-- A statement's plan is made for the tables as they are now: one that was kept from when a table was empty reads it from
-- end to end for every batch until the next ANALYZE. Set here, where a pooler cannot lose it; new connections have it.
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET plan_cache_mode = force_custom_plan', current_database());
END $$;

-- One row a lead. Hash-partitioned so that intake workers do not meet in the same pages, and so that the key is ready to
-- be a distribution column. fillfactor leaves room for updates in place.
CREATE TABLE leads (
    lead_id     uuid             NOT NULL,
    tenant      text             NOT NULL,
    version     bigint           NOT NULL,
    merged_into uuid,
    created_at  timestamptz      NOT NULL,
    updated_at  timestamptz      NOT NULL,
    email       text,
    status      text,
    owner       text,
    region      text,
    score       double precision,
    attributes  jsonb            NOT NULL,
    -- field -> [authority rank, occurred_at in microseconds, event_id]: what the next event has to outrank;
    -- _erased -> the last erasure's; _hidden -> what an erasure that comes late would show again
    -- json, not jsonb: only intake reads it, whole, and for that text costs a third
    provenance  json             NOT NULL,
    PRIMARY KEY (lead_id)
) PARTITION BY HASH (lead_id);

DO $$
BEGIN
    FOR i IN 0..7 LOOP
        EXECUTE format('CREATE TABLE leads_p%s PARTITION OF leads FOR VALUES WITH (MODULUS 8, REMAINDER %s) '
                       'WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05)', i, i);
    END LOOP;
END $$;
CREATE INDEX leads_email ON leads (tenant, email) WHERE email IS NOT NULL;

-- Who is who: the only source of truth. kind: external_id, email, phone, anonymous_id, crm:<name>.
CREATE TABLE identities (
    tenant  text NOT NULL,
    kind    text NOT NULL,
    value   text NOT NULL,
    lead_id uuid NOT NULL,
    PRIMARY KEY (tenant, kind, value)
);
CREATE INDEX identities_lead ON identities (lead_id);

-- One row an accepted event: dedupe, and what intake decided, so that a redelivery is emitted again instead of decided
-- again. Partitioned by the month it was decided in (no producer's clock); key is a 16-byte hash of (tenant, event_id).
CREATE TABLE receipts (
    key         uuid   NOT NULL,
    month       date   NOT NULL,
    "offset"    bigint NOT NULL,
    version     bigint NOT NULL,
    lead_id     uuid   NOT NULL,
    partition   int    NOT NULL,
    topic       text   NOT NULL,
    PRIMARY KEY (key, month)
) PARTITION BY RANGE (month);

-- One row a version of a lead: which event made it and what it changed.
CREATE TABLE lead_history (
    lead_id     uuid        NOT NULL,
    version     bigint      NOT NULL,
    month       date        NOT NULL,
    decided_at  timestamptz NOT NULL,
    tenant      text        NOT NULL,
    event_id    text        NOT NULL,
    event_type  text        NOT NULL,
    source      text        NOT NULL,
    occurred_at timestamptz NOT NULL,
    changes     jsonb       NOT NULL,
    merged      uuid[]      NOT NULL DEFAULT '{}',
    PRIMARY KEY (lead_id, version, month)
) PARTITION BY RANGE (month);

-- Merges are recorded whole, so that one can be taken back.
CREATE TABLE lead_aliases (
    alias_id  uuid        PRIMARY KEY,
    lead_id   uuid        NOT NULL,
    merged_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX lead_aliases_lead ON lead_aliases (lead_id);
CREATE TABLE lead_merges (
    survivor_id uuid        NOT NULL,
    loser_id    uuid        NOT NULL,
    tenant      text        NOT NULL,
    event_id    text        NOT NULL,
    merged_at   timestamptz NOT NULL DEFAULT now(),
    survivor    jsonb       NOT NULL, -- attributes and provenance before
    loser       jsonb       NOT NULL,
    identities  jsonb       NOT NULL, -- [[kind, value], ...] that were the loser's
    PRIMARY KEY (survivor_id, loser_id, merged_at)
);

-- Month partitions of receipts and lead_history, made ahead; intake calls it at start and once a day.
CREATE FUNCTION make_month_partitions(ahead int DEFAULT 2) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    first date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
    month date;
    parent text;
BEGIN
    PERFORM pg_advisory_xact_lock(7017839);
    FOR i IN -1..ahead LOOP
        month := (first + make_interval(months => i))::date;
        FOREACH parent IN ARRAY ARRAY['receipts', 'lead_history'] LOOP
            IF to_regclass(format('%I', parent || to_char(month, '_YYYY_MM'))) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                    parent || to_char(month, '_YYYY_MM'), parent,
                    month, (month + interval '1 month')::date);
            END IF;
        END LOOP;
    END LOOP;
END $$;
SELECT make_month_partitions();
