"""The HTTP API: accepts lead events, and serves their schemas, examples and error codes."""
