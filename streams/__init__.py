"""The stream processors: intake merges lead events into the canonical record; enrichment and campaigns follow it."""
