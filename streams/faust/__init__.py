"""The one adapter to Faust: its consumer with our bookkeeping, in-order acks, a watchdog, an app built by our rules."""
