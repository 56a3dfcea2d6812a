"""How a process of the stack begins."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from local.launch import launched


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not group by session")
def test_those_that_give_way_do_so_among_sessions_too_however_many_start_at_once() -> None:
    ordinary = (
        shutil.which("setpriv") if os.getuid() == 0 else None
    )  # the kernel makes only others than root take turns
    prefix = [ordinary, "--bounding-set", "-sys_admin"] if ordinary else []
    say = ["/bin/sh", "-c", "cat /proc/self/autogroup; nice"]
    command = [*prefix, *launched(say, signal=signal.SIGKILL, nice=7)]
    begun = [subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = [process.communicate(timeout=60)[0].split() for process in begun]
    assert [(words[-2], words[-1]) for words in said] == [("7", str(os.nice(0) + 7))] * len(begun)
