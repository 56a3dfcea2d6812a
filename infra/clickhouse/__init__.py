"""The ClickHouse client, and the SQL files of its migrations (applied by :mod:`operations.migrate_clickhouse`)."""
