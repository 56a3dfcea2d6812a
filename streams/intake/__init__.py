"""Intake: decode, validate, dedupe, identify, merge, route; one Postgres transaction a batch."""
