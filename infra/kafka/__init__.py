"""Kafka clients, topic definitions, the batch loop, delivery of records, and dead letters."""
