-- Hash of the content of an accepted event: an event with the same event_id and another content is not a duplicate.
-- Null: accepted before this column existed.
ALTER TABLE receipts ADD COLUMN content int;

-- envelope.context of the event that made the version (UTM parameters, page, user agent); null: none.
-- occurred_at is not after the broker's time of the record: the time for precedence.
ALTER TABLE lead_history ADD COLUMN context jsonb;
