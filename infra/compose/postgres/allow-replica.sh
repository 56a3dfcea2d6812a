#!/usr/bin/env bash
# Runs once, when the primary's data folder is created: adds the replica's role, its slot and its entry in pg_hba.conf.
set -euo pipefail
: "${REPLICATION_PASSWORD:?}"
psql --quiet --output /dev/null -v ON_ERROR_STOP=1 -v password="$REPLICATION_PASSWORD" -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<'SQL'
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'password';
SELECT pg_create_physical_replication_slot('replica', true);
SQL
echo "host replication replicator all scram-sha-256" >>"$PGDATA/pg_hba.conf"
