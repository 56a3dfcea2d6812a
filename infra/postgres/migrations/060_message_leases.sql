-- The lease of a message is a column of its own, as in every table of leased work (infra/postgres/leased_table.py);
-- state says what is known of the message, not who has it:
--
-- waiting  to be sent
-- sending  a worker has begun to hand it over: when its lease ends, nobody knows whether the provider accepted it
-- sent     accepted by the provider
-- failed   will never be sent; last_error has the reason
-- skipped  not to be sent any more: consent withdrawn, or the lead erased
ALTER TABLE messages_sent ADD COLUMN claimed_until timestamptz NOT NULL DEFAULT '-infinity';
UPDATE messages_sent SET claimed_until = next_attempt_at, state = replace(state, 'claimed', 'waiting')
WHERE state IN ('claimed', 'sending');
ALTER TABLE messages_sent DROP COLUMN claimed_at;

ALTER TABLE messages_sent DROP CONSTRAINT messages_sent_state_check;
ALTER TABLE messages_sent ADD CONSTRAINT messages_sent_state_check
    CHECK (state IN ('waiting', 'sending', 'sent', 'failed', 'skipped'));

DROP INDEX messages_due;
CREATE INDEX messages_due ON messages_sent (channel, next_attempt_at) WHERE state IN ('waiting', 'sending');
