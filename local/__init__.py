"""The embedded stack: real Kafka, Postgres, ClickHouse and Redis in one folder, and the supervisor that runs them."""
