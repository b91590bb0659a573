"""Several files of a folder replaced as one: after a kill at any moment all of them are the old ones or the new ones.

The new files are written into a folder inside. Renaming that folder is what decides; moving its files out of it can be
done again from any point, by whoever comes next.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from bptt.runs.lock import InUseError, Lock

NEW, READY = ".new", ".ready"
GONE = ".gone"
"""Ending of an empty file that stands for the absence of another one."""


@contextlib.contextmanager
def exchange(folder: Path) -> Iterator[Path]:
    """A new folder to fill, whose files then take the places of those in `folder`; nothing of it is left on failure."""
    new = folder / NEW
    new.mkdir()
    try:
        yield new
        commit(folder)
    except BaseException:
        discard(folder)
        raise


def remove(new: Path, name: str) -> None:
    """Let the exchange remove the file or folder `name`, instead of replacing it."""
    (new / (name + GONE)).touch()


def discard(folder: Path) -> None:
    """Throw away what was to replace the files of `folder`."""
    shutil.rmtree(folder / NEW, ignore_errors=True)


def commit(folder: Path) -> None:
    """Put the files and folders of `folder / NEW` in the places of those in `folder`."""
    os.rename(folder / NEW, folder / READY)
    settle(folder)


def settle(folder: Path) -> None:
    """Finish an exchange that was decided and then killed. Only for who holds the folder's lock."""
    ready = folder / READY
    if not ready.is_dir():
        return
    for source in sorted(ready.iterdir()):
        target = folder / source.name
        if source.suffix == GONE:
            gone = target.with_suffix("")
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
            source.unlink()
        elif source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            os.rename(source, target)
        else:
            os.replace(source, target)
    ready.rmdir()


def settle_if_idle(folder: Path) -> None:
    """`settle` for who only reads: waits for a process that is at it, and does nothing where nothing may be written."""
    for _ in range(50):
        try:
            if (folder / READY).is_dir():
                with Lock(folder, "bptt"):
                    settle(folder)
            return
        except OSError:
            return
        except InUseError:
            time.sleep(0.02)
