"""The intake stage: merges lead events into the canonical record and publishes the changes."""
