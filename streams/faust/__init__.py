"""The only adapter to Faust: a consumer with its own offset ledger, in-order acks, and a watchdog."""
