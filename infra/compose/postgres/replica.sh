#!/usr/bin/env bash
# Starts the streaming replica: copies the primary when there is no data yet, then runs the server as it is told to.
# A copy that was cut off is made again; a folder that holds a whole copy is never touched.
set -euo pipefail
: "${PRIMARY_HOST:?}" "${REPLICATION_PASSWORD:?}"
if [ ! -e "$PGDATA/.copied" ]; then
    echo "copying the primary at $PRIMARY_HOST"
    mkdir -p "$PGDATA"
    chmod 0700 "$PGDATA"
    find "$PGDATA" -mindepth 1 -delete
    PGPASSWORD=$REPLICATION_PASSWORD pg_basebackup --host "$PRIMARY_HOST" --port "${PRIMARY_PORT:-5432}" \
        --username replicator --pgdata "$PGDATA" --wal-method stream --slot replica --checkpoint fast --write-recovery-conf
    touch "$PGDATA/.copied"
fi
exec "$@"
