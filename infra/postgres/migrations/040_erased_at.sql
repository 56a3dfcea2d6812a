-- When the lead's newest erasure occurred; null: it was never erased. The same time as in provenance, whose form is
-- private to intake: every other reader asks this column.
ALTER TABLE leads ADD COLUMN erased_at timestamptz;
UPDATE leads SET erased_at = to_timestamp((provenance -> '_erased' ->> 1)::numeric / 1000000)
WHERE provenance -> '_erased' IS NOT NULL;
