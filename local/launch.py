"""Starts a command so that the kernel ends it with its parent, as another user, at a lower scheduling priority.

``python -I -S launch.py PARENT SIGNAL USER NICE COMMAND...`` makes these changes to its own process and then replaces
itself with COMMAND. NICE is added to the niceness.

- PARENT, SIGNAL: on Linux the kernel sends SIGNAL when the process PARENT dies, even by SIGKILL. The kernel watches the
  *thread* that started this process: it must be a thread that lives as long as PARENT.
- USER: a user id, or -1 to keep the user. Postgres refuses to run as root, so root runs it as another user, without
  any capability and without root's groups.

This is a separate program and not a ``preexec_fn``, which can deadlock in a parent that has threads.

Source: prctl(2), PR_SET_PDEATHSIG; capabilities(7), "Effect of user ID changes on capabilities"; sched(7), "The
autogroup feature".
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_NO_USER = -1
_RETRY_S = 0.11
_RETRIES = 50


def launch_command(command: Sequence[str], *, death_signal: int, user: int | None = None, nice: int = 0) -> list[str]:
    """Return the command line that runs ``command`` through this program, with the calling process as PARENT.

    Args:
        command: starts with an absolute path.
        death_signal: the signal that the kernel sends when the calling process dies (Linux).
        user: the user id to run as; None keeps the user.
        nice: added to the niceness.

    """
    user_id = _NO_USER if user is None else user
    options = (os.getpid(), int(death_signal), user_id, nice)
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), *map(str, options), *command]  # noqa: PTH100


def _switch_user(user: int) -> None:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)  # from root to another user: the kernel clears the effective, permitted and ambient capabilities


def _lower_priority(nice: int) -> None:
    """Raise the niceness of the process and, on Linux, of its session's autogroup.

    With sched_autogroup (on in most distributions) the niceness of a process counts only within its session, and each
    process of the stack has its own session. The autogroup has a niceness of its own, which counts between sessions.

    Without CAP_SYS_ADMIN the kernel allows one such change per 0.1 seconds on the whole machine and returns EAGAIN for
    the others, so processes that start together retry.
    """
    os.nice(nice)
    if os.getsid(0) != os.getpid():
        return  # the session, and so the autogroup, belongs to another process
    for _ in range(_RETRIES):
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as autogroup:  # noqa: PTH123 - starts fast
                autogroup.write(str(nice))
        except BlockingIOError:
            time.sleep(_RETRY_S)
        except OSError:
            return  # this kernel has no autogroups: the niceness of the process is enough
        else:
            return


def _main(parent: int, death_signal: int, user: int, nice: int, command: list[str]) -> None:
    if nice:
        _lower_priority(nice)
    if user != _NO_USER:
        _switch_user(user)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)  # last: a change of user clears it
    if os.getppid() != parent:  # PARENT died before the call above
        raise SystemExit(1)
    try:
        os.execv(command[0], command)  # noqa: S606 - a command of the supervisor, no shell
    except OSError as error:
        raise SystemExit(f"cannot run {command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
