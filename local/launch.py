"""The first moments of every process the supervisor starts: it becomes the command, bound to its parent's life.

``python -I -S launch.py PARENT SIGNAL USER NICE COMMAND...``: on Linux the kernel sends SIGNAL when the process PARENT
dies, however it dies (prctl(2), PR_SET_PDEATHSIG). A program of its own rather than a ``preexec_fn``, which may hang
in a parent that has threads. PARENT has to start it from a thread that lives as long as the command should: the kernel
means the thread.

USER is a user id, or -1. Postgres refuses to run as root, so that root runs it as somebody else, who keeps of root's
rights one (CAP_DAC_OVERRIDE, as an ambient capability): to get to its folder wherever that is, even below /root. Where
root itself lacks that right, the folder must be one that everybody can get to.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
_NO_USER = -1
_TURN_S = 0.11
_TURNS = 50


def launched(command: Sequence[str], *, signal: int, user: int | None = None, nice: int = 0) -> list[str]:
    """Return ``command`` so that it gets ``signal`` when this process dies, and runs as ``user`` (a user id).

    ``nice`` is added to its niceness.
    """
    who = _NO_USER if user is None else user
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(signal)), str(who), str(nice), *command]


def _become(user: int) -> None:
    linux = sys.platform.startswith("linux")
    libc = ctypes.CDLL(None)
    if linux:
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    if linux:
        right = 1 << _CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        sets = (ctypes.c_uint32 * 6)(right, right, right, 0, 0, 0)  # effective, permitted, inheritable; two words each
        libc.capset(header, sets)
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def _give_way(nice: int) -> None:
    """Come after those that do not give way, within the session and, on Linux, among sessions.

    Where the kernel groups by session (sched_autogroup, on in most distributions), a niceness counts within the session
    alone, and each process of the stack has a session to itself: the group has a niceness of its own. sched(7)
    Others than root may set one such in a tenth of a second, whoever they are, so those that start together take turns.
    """
    os.nice(nice)
    if os.getsid(0) != os.getpid():
        return
    for _ in range(_TURNS):
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as group:  # noqa: PTH123 - starts fast
                group.write(str(nice))
        except BlockingIOError:
            time.sleep(_TURN_S)
        except OSError:
            return  # a kernel without such groups, where niceness counts among all
        else:
            return


def _main(parent: int, number: int, user: int, nice: int, command: list[str]) -> None:
    if nice:
        _give_way(nice)
    if user != _NO_USER:
        _become(user)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)  # last: a change of user clears it
    if os.getppid() != parent:  # it died before the kernel was asked
        raise SystemExit(1)
    try:
        os.execv(command[0], command)  # noqa: S606 - the supervisor's own words, no shell
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
