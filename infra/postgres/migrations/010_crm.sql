-- What each CRM should have and what it has: one row a live lead and destination. The reconciler is the only writer.
-- wanted > synced: there is work. next_attempt_at: not before then ('infinity': rejected, until a newer version is
-- wanted). claimed_until: a worker has it in hand until then; a crash frees it by the time passing.
CREATE TABLE crm_sync (
    destination     text        NOT NULL,
    tenant          text        NOT NULL,
    lead_id         uuid        NOT NULL,
    wanted_version  bigint      NOT NULL,
    synced_version  bigint      NOT NULL DEFAULT 0,
    attempts        int         NOT NULL DEFAULT 0,     -- failed ones since the last success
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    claimed_until   timestamptz NOT NULL DEFAULT '-infinity',
    last_wanted_at  timestamptz NOT NULL,               -- when intake decided the wanted version
    synced_at       timestamptz,
    last_error      text        NOT NULL DEFAULT '',    -- infra.outcomes.Reason, never a value of the lead
    remote_id       text        NOT NULL DEFAULT '',    -- the CRM's own id of the record
    PRIMARY KEY (destination, lead_id)
) PARTITION BY HASH (lead_id);

DO $$
BEGIN
    FOR i IN 0..7 LOOP
        EXECUTE format('CREATE TABLE crm_sync_p%s PARTITION OF crm_sync FOR VALUES WITH (MODULUS 8, REMAINDER %s) '
                       'WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05)', i, i);
    END LOOP;
END $$;

-- Holds only what is not synced, so that asking for due work costs what is due, however many leads there are.
CREATE INDEX crm_sync_due ON crm_sync (destination, next_attempt_at) WHERE wanted_version > synced_version;
