"""Sinks: deliver lead changes to ClickHouse and to CRMs, and send messages. Each sink is a process of its own."""
