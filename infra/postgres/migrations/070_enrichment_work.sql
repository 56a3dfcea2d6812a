-- Enrichment requests that no provider could answer yet: one row a lead, with its next attempt. It is deleted when the
-- request is answered, refused or expired. A row has no personal data: each attempt reads the lead as it is then, so an
-- erased lead is not looked up. The columns of the lease: infra/postgres/leased_table.py.
CREATE TABLE enrichment_work (
    queue           text        NOT NULL,
    lead_id         uuid        NOT NULL,
    tenant          text        NOT NULL,
    event_id        text        NOT NULL,            -- of the lead event that caused the request
    version         bigint      NOT NULL,            -- of the lead in the request: a newer one replaces it
    topic           text        NOT NULL,            -- where the request came from
    partition       int         NOT NULL,
    "offset"        bigint      NOT NULL,
    traceparent     text        NOT NULL DEFAULT '',
    expires_at      timestamptz NOT NULL,
    attempts        int         NOT NULL DEFAULT 0,
    last_error      text        NOT NULL,            -- infra.outcomes.Reason, never a value of the lead
    next_attempt_at timestamptz NOT NULL,
    claimed_until   timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (queue, lead_id)
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX enrichment_work_due ON enrichment_work (queue, next_attempt_at);
CREATE INDEX enrichment_work_expiry ON enrichment_work (queue, expires_at);
