"""What the supervisor promises, with tiny real processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from local import control
from local.leftovers import Remembered
from local.part import advice, tail
from tests.local.conftest import STEADY, STUBBORN, Fake, gone, processes_of, until

pytestmark = pytest.mark.timeout(120)

TELLS = """
def told(*_):
    with (home / "order").open("a") as file:
        file.write(name + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
ready()
wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux signals the children of who is killed")
def test_nothing_outlives_a_supervisor_that_is_killed(fake: Fake) -> None:
    fake.up(parts={"one": STUBBORN}, simulators={"two": STUBBORN}, workers={"three": STUBBORN})
    assert len(processes_of(fake.home)) == 4
    fake.signal(signal.SIGKILL)
    gone(fake.home)


def test_what_a_killed_supervisor_left_is_ended_by_the_next_and_nothing_else_is(fake: Fake) -> None:
    fake.home.mkdir()
    left, other = (subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) for _ in range(2))
    try:
        remembered = Remembered(fake.home)
        remembered.add("left", left.pid, signal.SIGKILL)
        remembered.add("other", other.pid, signal.SIGKILL)
        file = fake.home / "processes.json"
        known = json.loads(file.read_text("utf-8"))
        known["other"]["started"] -= 1  # the id of a process that is gone, given to somebody else since
        file.write_text(json.dumps(known), "utf-8")
        reaped = threading.Thread(target=left.wait)  # it is our child: somebody has to take note of its end
        reaped.start()
        fake.up(parts={"one": STEADY})
        reaped.join(30)
        assert left.poll() == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_orderly_stop_ends_everything_and_leaves_no_state(fake: Fake, number: int) -> None:
    fake.up(parts={"one": STEADY, "stubborn": STUBBORN}, workers={"two": STEADY})
    assert stat.S_IMODE((fake.home / "stack.env").stat().st_mode) == 0o600
    assert "LEADSTREAM_SHUTDOWN_S=7\n" in (fake.home / "stack.env").read_text("utf-8")
    assert fake.signal(number) == 0
    assert processes_of(fake.home) == []
    for name in ("stack.json", "stack.env", "control.sock", "processes.json"):
        assert not (fake.home / name).exists()


def test_a_stop_while_it_starts_ends_everything(fake: Fake) -> None:
    process = fake.start(parts={"one": "wait()"})
    until(lambda: fake.state.get("processes") and fake.of("one")["pid"], "the part was started")
    process.terminate()
    assert process.wait(30) == 0
    gone(fake.home)


def test_processes_stop_before_what_they_stand_on(fake: Fake) -> None:
    fake.up(parts={"part": TELLS}, simulators={"simulator": TELLS}, workers={"worker": TELLS})
    assert fake.signal(signal.SIGTERM) == 0
    assert (fake.home / "order").read_text("utf-8").split() == ["worker", "simulator", "part"]


def test_a_process_that_ends_is_started_again_and_counted(fake: Fake) -> None:
    fake.up(parts={"one": STEADY}, workers={"two": STEADY})
    before = fake.of("two")["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: fake.of("two")["restarts"] == 1 and fake.of("two")["state"] == "ready", "started again")
    assert fake.of("two")["pid"] not in (before, None)
    assert fake.of("one")["restarts"] == 0


def test_exit_code_78_is_not_started_again_and_costs_only_itself(fake: Fake) -> None:
    state = fake.up(workers={"wrong": "print('LEADSTREAM_X: no such setting'); sys.exit(78)", "right": STEADY})
    assert fake.of("wrong") == {"name": "wrong", "pid": None, "state": "failed", "restarts": 0}
    assert "has to be mended" in state["failures"]["wrong"]
    assert "LEADSTREAM_X: no such setting" in state["failures"]["wrong"]
    assert fake.of("right")["state"] == "ready"


def test_a_part_that_cannot_start_is_named_with_its_reason_and_nothing_is_left(fake: Fake) -> None:
    process = fake.start(parts={"good": STEADY, "bad": "print('write: No space left on device'); sys.exit(1)"})
    assert process.wait(60) == 1
    gone(fake.home)
    assert fake.state["state"] == "failed"
    for words in ("bad ended 3 times", "exit code 1", "the disk is full", "No space left on device", "bad.log"):
        assert words in fake.state["error"]
    assert not (fake.home / "stack.env").exists()


def test_a_program_that_is_not_there_is_named(fake: Fake) -> None:
    process = fake.start(parts={"one": "import os; os.execv('/no/such/program', ['x'])"})
    assert process.wait(60) == 1
    assert "No such file or directory" in fake.state["error"]


def test_one_process_is_stopped_started_and_restarted_by_its_name(fake: Fake) -> None:
    path = fake.up(parts={"one": STEADY}, workers={"two": STEADY})["control"]
    control.ask(path, "stop", "two")
    assert fake.of("two") == {"name": "two", "pid": None, "state": "stopped", "restarts": 0}
    control.ask(path, "start", "two")
    until(lambda: fake.of("two")["state"] == "ready", "started")
    before = fake.of("two")["pid"]
    control.ask(path, "restart", "two")
    until(lambda: fake.of("two")["state"] == "ready" and fake.of("two")["pid"] != before, "restarted")
    assert fake.of("two")["restarts"] == 1
    for verb, name, why in (("stop", "none", "no process 'none'"), ("eat", "two", "cannot eat")):
        with pytest.raises(control.Refused, match=why):
            control.ask(path, verb, name)


def test_a_state_folder_with_a_long_path_can_be_controlled_too(tmp_path: Path) -> None:
    deep = Fake(tmp_path / ("long" * 30))
    try:
        path = deep.up(parts={"one": STEADY})["control"]
        control.ask(path, "restart", "one")
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    finally:
        assert deep.signal(signal.SIGTERM) == 0
    assert not Path(path).parent.exists()


def test_a_second_supervisor_of_the_same_folder_refuses(fake: Fake) -> None:
    fake.up(parts={"one": STEADY})
    environment = {**os.environ, "LEADSTREAM_HOME": str(fake.home)}
    command = [sys.executable, "-m", "local.supervisor"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1
    assert "already runs" in said.stderr
    assert fake.of("one")["state"] == "ready"


def test_a_process_dies_with_the_one_that_launched_it_only(fake: Fake) -> None:
    fake.up(parts={"one": STEADY})
    child = psutil.Process(fake.of("one")["pid"])
    assert fake.process is not None
    assert child.ppid() == fake.process.pid
    assert os.getsid(child.pid) == child.pid  # Ctrl-C in the supervisor's terminal does not reach it


def test_the_end_of_a_log_is_what_a_person_needs(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    assert tail(log) == "(no log)"
    log.write_text("\n".join(f"line {number}" for number in range(5000)) + "\nbind: Address already in use\n", "utf-8")
    assert tail(log, 2) == "line 4999\nbind: Address already in use"
    assert "another program has its port" in advice(tail(log))
    assert advice("something new") == ""
