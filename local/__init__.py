"""The embedded stack: real Kafka, Postgres, ClickHouse and Redis in one folder, and the supervisor that runs them.

Terms: a *part* is Kafka, Postgres, ClickHouse or Redis; a *simulator* replaces an external service; a *worker* is a
process of the pipeline. All three are *processes* of the stack. The *state folder* (``LEADSTREAM_HOME``) holds its
data.
"""
