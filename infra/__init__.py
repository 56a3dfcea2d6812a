"""What every part stands on: settings, errors, outcomes, Kafka, Postgres, ClickHouse, the embedded stack."""
