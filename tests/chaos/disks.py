"""Small file systems under the data of one part: they can be made full, and get space again (Linux, as root)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SPARE = 128 << 10  # bytes that are left on a disk that is filled: the next writes find the end
_FULL = 64 << 10  # a disk with less free bytes is full


class SmallDisk:
    """A file system in memory, at most ``size`` bytes, that holds ``folder``: its content is moved there."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self._size = size
        aside = folder.with_name(folder.name + ".aside")
        folder.mkdir(exist_ok=True)
        owner = folder.stat()
        folder.rename(aside)
        folder.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700,uid={owner.st_uid},gid={owner.st_gid}", "t", folder)
        _run("cp", "-a", f"{aside}/.", folder)
        _run("rm", "-rf", aside)

    def fill(self) -> None:
        """Leave almost no free space."""
        self._resize(self._used() + _SPARE)

    def empty(self) -> None:
        """Give the space back."""
        self._resize(self._size)

    @property
    def full(self) -> bool:
        """Whether a write of some size fails now."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize < _FULL

    def unmount(self) -> None:
        """Remove the file system with its content, after the stack has stopped."""
        _run("umount", "--lazy", self.folder)

    def _used(self) -> int:
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _resize(self, size: int) -> None:
        _run("mount", "-o", f"remount,size={size}", self.folder)


def missing(scratch: Path) -> str:
    """Return why there can be no small file systems here, or an empty string. Tries it in the folder ``scratch``."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "mounting a small file system needs root on Linux"
    scratch.mkdir(parents=True, exist_ok=True)
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "t", scratch], capture_output=True, check=False)
    if tried.returncode:
        return "this machine does not allow mounts, even to root (a container without CAP_SYS_ADMIN)"
    _run("umount", scratch)
    return ""


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
