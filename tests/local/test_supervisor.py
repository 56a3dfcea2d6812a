"""The guarantees of the supervisor, with small real processes."""

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
from local.diagnosis import advice, log_tail
from local.orphans import StartedProcesses
from tests.local.conftest import IGNORES_SIGTERM, RUNS, SmallStack, processes_of, until, wait_until_ended

pytestmark = pytest.mark.timeout(120)

RECORDS_ITS_STOP = """
def on_sigterm(*_):
    with (home / "order").open("a") as file:
        file.write(name + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, on_sigterm)
ready()
wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux signals the children of a killed process")
def test_all_processes_end_when_the_supervisor_is_killed(small_stack: SmallStack) -> None:
    small_stack.up(
        parts={"one": IGNORES_SIGTERM}, simulators={"two": IGNORES_SIGTERM}, workers={"three": IGNORES_SIGTERM}
    )
    assert len(processes_of(small_stack.home)) == 4
    small_stack.signal(signal.SIGKILL)
    wait_until_ended(small_stack.home)


def test_the_next_supervisor_ends_orphans_and_no_other_process(small_stack: SmallStack) -> None:
    small_stack.home.mkdir()
    orphan, other = (subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) for _ in range(2))
    try:
        started = StartedProcesses(small_stack.home)
        started.record("orphan", orphan.pid, signal.SIGKILL)
        started.record("other", other.pid, signal.SIGKILL)
        file = small_stack.home / "processes.json"
        entries = json.loads(file.read_text("utf-8"))
        entries["other"]["started"] -= 1  # as when another process has reused the id of one that ended
        file.write_text(json.dumps(entries), "utf-8")
        reaper = threading.Thread(target=orphan.wait)  # it is a child of this test, and a zombie until it is waited for
        reaper.start()
        small_stack.up(parts={"one": RUNS})
        reaper.join(30)
        assert orphan.poll() == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (orphan, other):
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_all_processes_and_removes_the_state_files(small_stack: SmallStack, number: int) -> None:
    small_stack.up(parts={"one": RUNS, "stubborn": IGNORES_SIGTERM}, workers={"two": RUNS})
    assert stat.S_IMODE((small_stack.home / "stack.env").stat().st_mode) == 0o600
    assert "LEADSTREAM_SHUTDOWN_S=7\n" in (small_stack.home / "stack.env").read_text("utf-8")
    assert small_stack.signal(number) == 0
    assert processes_of(small_stack.home) == []
    for name in ("stack.json", "stack.env", "control.sock", "processes.json"):
        assert not (small_stack.home / name).exists()


def test_a_stop_during_the_start_ends_all_processes(small_stack: SmallStack) -> None:
    process = small_stack.start(parts={"one": "wait()"})
    until(lambda: small_stack.state.get("processes") and small_stack.process("one")["pid"], "the part was started")
    process.terminate()
    assert process.wait(30) == 0
    wait_until_ended(small_stack.home)


def test_workers_stop_before_simulators_and_simulators_before_parts(small_stack: SmallStack) -> None:
    small_stack.up(
        parts={"part": RECORDS_ITS_STOP},
        simulators={"simulator": RECORDS_ITS_STOP},
        workers={"worker": RECORDS_ITS_STOP},
    )
    assert small_stack.signal(signal.SIGTERM) == 0
    assert (small_stack.home / "order").read_text("utf-8").split() == ["worker", "simulator", "part"]


def test_a_process_that_exits_is_restarted_and_counted(small_stack: SmallStack) -> None:
    small_stack.up(parts={"one": RUNS}, workers={"two": RUNS})
    before = small_stack.process("two")["pid"]
    os.kill(before, signal.SIGKILL)
    until(
        lambda: small_stack.process("two")["restarts"] == 1 and small_stack.process("two")["state"] == "ready",
        "the process is restarted",
    )
    assert small_stack.process("two")["pid"] not in (before, None)
    assert small_stack.process("one")["restarts"] == 0


def test_a_process_with_exit_code_78_is_not_restarted_and_the_others_run(small_stack: SmallStack) -> None:
    state = small_stack.up(workers={"wrong": "print('LEADSTREAM_X: no such setting'); sys.exit(78)", "right": RUNS})
    assert small_stack.process("wrong") == {"name": "wrong", "pid": None, "state": "failed", "restarts": 0}
    assert "cannot run until the problem in its log is fixed (exit code 78)" in state["failures"]["wrong"]
    assert "LEADSTREAM_X: no such setting" in state["failures"]["wrong"]
    assert small_stack.process("right")["state"] == "ready"


def test_a_part_that_does_not_start_fails_the_start_with_its_reason(small_stack: SmallStack) -> None:
    process = small_stack.start(parts={"good": RUNS, "bad": "print('write: No space left on device'); sys.exit(1)"})
    assert process.wait(60) == 1
    wait_until_ended(small_stack.home)
    assert small_stack.state["state"] == "failed"
    for words in ("bad exited 3 times", "exit code 1", "the disk is full", "No space left on device", "bad.log"):
        assert words in small_stack.state["error"]
    assert not (small_stack.home / "stack.env").exists()


def test_the_end_of_the_log_of_a_failed_part_is_in_the_error(small_stack: SmallStack) -> None:
    process = small_stack.start(parts={"one": "import os; os.execv('/no/such/program', ['x'])"})
    assert process.wait(60) == 1
    assert "No such file or directory" in small_stack.state["error"]


def test_one_process_is_stopped_started_and_restarted_by_name(small_stack: SmallStack) -> None:
    path = small_stack.up(parts={"one": RUNS}, workers={"two": RUNS})["control"]
    control.send_command(path, "stop", "two")
    assert small_stack.process("two") == {"name": "two", "pid": None, "state": "stopped", "restarts": 0}
    control.send_command(path, "start", "two")
    until(lambda: small_stack.process("two")["state"] == "ready", "the process is started")
    before = small_stack.process("two")["pid"]
    control.send_command(path, "restart", "two")
    until(
        lambda: small_stack.process("two")["state"] == "ready" and small_stack.process("two")["pid"] != before,
        "the process is restarted",
    )
    assert small_stack.process("two")["restarts"] == 1
    for verb, name, why in (("stop", "none", "no process 'none'"), ("eat", "two", "no command 'eat'")):
        with pytest.raises(control.CommandRefusedError, match=why):
            control.send_command(path, verb, name)


def test_a_state_folder_with_a_long_path_has_a_control_socket(tmp_path: Path) -> None:
    deep = SmallStack(tmp_path / ("long" * 30))
    try:
        path = deep.up(parts={"one": RUNS})["control"]
        control.send_command(path, "restart", "one")
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    finally:
        assert deep.signal(signal.SIGTERM) == 0
    assert not Path(path).parent.exists()


def test_a_second_supervisor_of_a_state_folder_does_not_start(small_stack: SmallStack) -> None:
    small_stack.up(parts={"one": RUNS})
    environment = {**os.environ, "LEADSTREAM_HOME": str(small_stack.home)}
    command = [sys.executable, "-m", "local.supervisor"]
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert small_stack.process("one")["state"] == "ready"


def test_a_process_is_a_child_of_the_supervisor_in_a_session_of_its_own(small_stack: SmallStack) -> None:
    small_stack.up(parts={"one": RUNS})
    child = psutil.Process(small_stack.process("one")["pid"])
    assert small_stack.supervisor is not None
    assert child.ppid() == small_stack.supervisor.pid
    assert os.getsid(child.pid) == child.pid  # Ctrl-C in the supervisor's terminal does not reach it


def test_the_end_of_a_log_has_advice_for_known_errors(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    assert log_tail(log) == "(no log)"
    log.write_text("\n".join(f"line {number}" for number in range(5000)) + "\nbind: Address already in use\n", "utf-8")
    assert log_tail(log, 2) == "line 4999\nbind: Address already in use"
    assert "another program uses its port" in advice(log_tail(log))
    assert advice("something new") == ""
