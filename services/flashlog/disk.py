"""The file operations of the writer, apart, so that tests can cut the power between any two of them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Disk:
    """The real file system. All methods raise OSError."""

    def open_folder(self, path: Path) -> int:
        """Make the folder if its parent is there, and lock it: one writer per stream.

        Raises BlockingIOError when another process holds it. The lock ends with the descriptor.
        """
        if not path.is_dir():
            path.mkdir(mode=0o750)
            self.sync_folder(path.parent)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def create(self, path: Path) -> int:
        """A new file for appending. One of that name can only be left from an attempt that failed."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return os.open(path, flags, 0o640)

    def write(self, fd: int, data: bytes) -> None:
        """All of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def sync(self, fd: int) -> None:
        """Back only when contents and size are on the flash."""
        os.fdatasync(fd)

    def sync_folder(self, path: Path) -> None:
        """Back only when the names in the folder are on the flash."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def is_gone(self, fd: int) -> bool:
        """Whether the open file was deleted: what is appended to it nobody will read."""
        return os.fstat(fd).st_nlink == 0

    def close(self, fd: int) -> None:
        os.close(fd)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
