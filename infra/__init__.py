"""What every other package uses: settings, errors, outcomes, telemetry, Kafka, Postgres, ClickHouse."""
