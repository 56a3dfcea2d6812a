"""The Postgres pool, the engine of leased work, and the SQL files of the migrations.

:mod:`operations.migrate_postgres` applies the files.
"""
