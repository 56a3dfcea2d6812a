"""Infrastructure that all other packages use: settings, errors, outcomes, telemetry, Kafka, Postgres, ClickHouse."""
