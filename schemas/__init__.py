"""The schema registry: lead event types, the canonical lead, and the records that the pipeline writes."""
