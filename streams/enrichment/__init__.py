"""The enrichment stage: looks leads up at data providers and emits the results as lead events."""

STAGE = "enrichment"
