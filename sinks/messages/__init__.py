"""Message delivery: one file a channel."""
