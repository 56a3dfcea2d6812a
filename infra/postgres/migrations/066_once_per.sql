-- Messages that are sent at most once for each lead are remembered for ever; the daily job deletes the others.
-- 'lead' for the messages that are here already: which of the two they are is not known.
ALTER TABLE messages_sent ADD COLUMN once_per text NOT NULL DEFAULT 'lead';
CREATE INDEX messages_finished ON messages_sent (requested_at)
    WHERE state IN ('sent', 'failed', 'skipped') AND once_per = 'event';
