"""The schema registry: a folder is an index. Event types, the canonical lead, and what the pipeline writes itself."""
