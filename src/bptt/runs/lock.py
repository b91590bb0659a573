"""One process at a time: locks that the operating system takes back when their process ends, however it ends."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Self

try:
    import fcntl
except ImportError:  # not a POSIX system, where nothing is locked
    fcntl = None

LOCK = ".lock"


class InUseError(RuntimeError):
    """A different process writes to a folder. folder, owner: which one, and who it says it is."""

    def __init__(self, folder: Path, owner: str) -> None:
        super().__init__(f"{folder}: {owner} writes here now. Choose a different folder, or wait until it ends.")
        self.folder, self.owner = folder, owner


class Lock:
    """The right to write to a folder, held until it is released or the process ends, however it ends.

    The operating system holds it, on a file `.lock` that says whose it is; one that a killed process left is free.
    Where there are no such locks (Windows, some network drives), nothing is locked.

    Arguments:
        folder: exists. who: a name for this process, which the others are told.

    Raises: InUseError if a different process has it; OSError if the folder can't be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Lock(folder, "my loop"):
    ...     try:
    ...         Lock(folder, "a second one")
    ...     except InUseError as error:
    ...         print(error.owner.split(" (")[0])
    my loop
    """

    def __init__(self, folder: str | Path, who: str = "a process") -> None:
        folder = Path(folder)
        self._path = folder / LOCK
        while True:
            number = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _locked(number, wait=False):
                    owner = " ".join(os.read(number, 400).decode(errors="replace").split())
                    raise InUseError(folder, owner or "another process")
                if _is(number, self._path):
                    break
            except BaseException:
                os.close(number)
                raise
            os.close(number)  # its holder released and removed it after it was opened here
        self._number: int | None = number
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(number, 0)
            os.write(number, f"{who} (process {os.getpid()} on {platform.node()})".encode())

    def release(self) -> None:
        """Let others write here; a second call does nothing."""
        if self._number is None:
            return
        with contextlib.suppress(OSError):  # removed while it is held, so that it is never that of another process
            self._path.unlink()
        os.close(self._number)
        self._number = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Make the file `path` and be the only process that does so; others wait. It's theirs once it has been renamed."""
    if fcntl is None:
        yield
        return
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _locked(number, wait=True)
            if _is(number, path):
                yield
                return
        finally:
            os.close(number)


def _locked(number: int, wait: bool) -> bool:
    """Lock a file; False if another process has."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system that has no locks
        return True
    return True


def _is(number: int, path: Path) -> bool:
    """Whether `path` still names an open file."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False
