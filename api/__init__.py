"""The HTTP API: lead events in, and what senders need to write them."""
