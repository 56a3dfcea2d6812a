"""The launcher of the stack's processes: scheduling priority and errors."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from local.launch import launch_command


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no autogroups")
def test_niceness_applies_to_the_session_too_when_many_processes_start_at_once() -> None:
    # The kernel limits the rate of changes only without CAP_SYS_ADMIN.
    drop_capability = shutil.which("setpriv") if os.getuid() == 0 else None
    prefix = [drop_capability, "--bounding-set", "-sys_admin"] if drop_capability else []
    show = ["/bin/sh", "-c", "cat /proc/self/autogroup; nice"]
    command = [*prefix, *launch_command(show, death_signal=signal.SIGKILL, nice=7)]
    processes = [subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [(words[-2], words[-1]) for words in outputs] == [("7", str(os.nice(0) + 7))] * len(processes)


def test_a_missing_program_is_named() -> None:
    command = launch_command(["/no/such/program"], death_signal=signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "cannot run /no/such/program: No such file or directory\n")
