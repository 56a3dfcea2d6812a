"""The stream processors: intake decides, enrichment and campaigns follow."""
