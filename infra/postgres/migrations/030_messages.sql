-- Messages asked for and what became of them: one row a message_id, for ever, so that none is sent twice.
--
-- waiting  to be sent at next_attempt_at
-- claimed  a worker prepares to send it; free again at next_attempt_at
-- sending  the worker has begun to hand it over: when next_attempt_at passes, nobody knows whether it was taken
-- sent     taken by the provider
-- failed   never will be; last_error says why
-- skipped  not to be sent any more: consent withdrawn, or the lead erased
--
-- request holds the message itself, which is personal data: only for as long as it may still have to be sent.
CREATE TABLE messages_sent (
    message_id      text        NOT NULL PRIMARY KEY,
    tenant          text        NOT NULL,
    lead_id         uuid        NOT NULL,
    event_id        text        NOT NULL,
    campaign        text        NOT NULL,
    channel         text        NOT NULL,
    purpose         text        NOT NULL,
    topic           text        NOT NULL, -- where the request came from
    partition       int         NOT NULL,
    "offset"        bigint      NOT NULL,
    requested_at    timestamptz NOT NULL,
    request         bytea,
    state           text        NOT NULL DEFAULT 'waiting'
                    CHECK (state IN ('waiting', 'claimed', 'sending', 'sent', 'failed', 'skipped')),
    attempts        int         NOT NULL DEFAULT 0,
    claimed_at      timestamptz,
    next_attempt_at timestamptz NOT NULL,
    sent_at         timestamptz,
    provider_id     text        NOT NULL DEFAULT '',
    last_error      text        NOT NULL DEFAULT '', -- infra.outcomes.Reason, never a value of the lead
    CHECK ((request IS NULL) = (state IN ('sent', 'failed', 'skipped')))
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05);

-- Holds only what is not finished, so that asking for due work costs what is due, however many messages there were.
CREATE INDEX messages_due ON messages_sent (channel, next_attempt_at)
    WHERE state IN ('waiting', 'claimed', 'sending');
CREATE INDEX messages_lead ON messages_sent (lead_id);
