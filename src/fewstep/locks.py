"""Locks on files, which the system releases when the process that holds them ends, however it ends."""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 2**31 - 2, os.SEEK_SET)  # one byte far behind the end, since locked bytes cannot be read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}  # how systems say that another process holds a lock


class Lock(NamedTuple):
    """A lock file that this process holds until it releases it or ends."""

    path: Path
    handle: int
    sure: bool  # False where the file system has no locks, so that another process may hold it too

    def write(self, text: str) -> None:
        """Put the text into the file, for those who find it locked."""
        os.ftruncate(self.handle, 0)
        os.lseek(self.handle, 0, os.SEEK_SET)
        os.write(self.handle, text.encode())

    def release(self) -> None:
        """Let others take the lock; its file stays."""
        os.close(self.handle)

    def remove(self) -> None:
        """Remove the file, and let others take the lock."""
        with suppress(OSError):  # Windows removes no open file
            self.path.unlink()
        self.release()
        if sys.platform == "win32":
            with suppress(OSError):
                self.path.unlink()


def take(path: Path) -> Lock | None:
    """The lock of the file `path`, which is made if it is not there; None while another process holds it.

    Raises OSError when the file cannot be made.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        sure = True
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in _HELD:
                os.close(handle)
                return None
            sure = False
        with suppress(FileNotFoundError):  # its last holder removed it between the two calls
            if os.path.samestat(os.fstat(handle), path.stat()):
                return Lock(path, handle, sure)
        os.close(handle)
