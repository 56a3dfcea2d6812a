"""The sinks: ClickHouse, CRMs and messages, each behind its own topic and in its own process."""
