"""Enrichment on Faust: ask providers about a lead and send what they say back in as a lead event."""
