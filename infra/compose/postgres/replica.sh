#!/usr/bin/env bash
# Starts the streaming replica: copies the primary if there is no data yet, then runs the server with its arguments.
# An interrupted copy is repeated; a folder with a complete copy is never changed.
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
