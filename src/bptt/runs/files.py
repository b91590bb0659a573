"""Files written so that readers, and whoever comes after a kill or a full disk, find the old one or the new one."""

import contextlib
import errno
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bptt.runs.lock import alone


class Lines:
    """A file of lines, such as one of metrics, that is whole to its last line however its process ends.

    Arguments:
        mode: "w" for a new file, "a" to add to one.

    Raises: OSError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lines = Lines(f"{folder}/metrics.jsonl", "w")
    ...     lines.add('{"step": 1}')
    ...     lines.close()
    ...     Path(folder, "metrics.jsonl").read_text()
    '{"step": 1}\\n'
    """

    def __init__(self, path: str | Path, mode: str) -> None:
        self._file = io.FileIO(path, mode)

    def add(self, line: str) -> None:
        """Write a line. Raises OSError; nothing of the line stays then."""
        end = self._file.seek(0, os.SEEK_END)
        left = memoryview((line + "\n").encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Nothing more can be written; a second call does nothing."""
        with contextlib.suppress(OSError):  # nothing waits to be written
            self._file.close()


def replace(target: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file and put it in the place of `target`: readers see the old file or the new one.

    What a killed process leaves of it, the next one that writes the same file replaces.

    Arguments:
        write: gets the path to fill, in the same folder and with the same suffix.

    Raises: OSError, and whatever `write` raises; the old file stays then.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace(f"{folder}/weights.pt", lambda path: torch.save({"w": torch.zeros(2)}, path))
    ...     sorted(each.name for each in Path(folder).iterdir())
    ['weights.pt']
    """
    target = Path(target)
    part = temporary(target)
    with alone(part):
        try:
            write(part)
            to_disk(part)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write(target: Path, text: str) -> None:
    """Put a text file in the place of `target`."""
    replace(target, lambda path: path.write_text(text, encoding="utf-8"))


def temporary(target: Path) -> Path:
    """The name of a file while it is being written."""
    return target.with_name(f".{target.name}.part{target.suffix}")  # the suffix tells savefig the format


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where a full one may show itself only then."""
    if path.is_dir() and os.name == "nt":  # which opens no folders
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems can't wait
            raise
    finally:
        os.close(number)


def jsonable(value: Any) -> Any:
    """`value` with null for every number that JSON can't hold.

    >>> jsonable({"loss": [1.5, float("nan")]})
    {'loss': [1.5, None]}
    """
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
