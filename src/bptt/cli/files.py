"""Files that people or other programs have changed: read only where they are files, and of the shape that is wanted."""

from __future__ import annotations

import contextlib
import itertools
import re
import stat
from pathlib import Path
from typing import Any

from bptt.cli.data_options import is_numbers
from bptt.cli.printing import UserError, user_errors
from bptt.cli.room import must_have_room
from bptt.data import PYTHON_DOCS, load_text
from bptt.runs import settings
from bptt.runs.settings import SETTINGS_MOST

LOOKED_AT = 4096
"""Bytes of a text that are looked at to see whether it is a table of numbers."""
_OF_A_BYTE = 8
"""Bytes that each byte of a text takes at the least while it is turned into ids; ASCII takes twice that."""


def data_text(source: str, surely: bool = False) -> str:
    """The text that `--data` names.

    surely: that a text is meant was said; otherwise a table of numbers isn't taken for one.

    Raises: UserError for what `bptt.data.load_text` refuses, or memory can't hold, and for a table of numbers.
    """
    if source != PYTHON_DOCS and not surely and (is_numbers(source) or _table(source)):
        named = "" if is_numbers(source) else " under a name that ends with .csv"
        raise UserError(
            f"--data {source}: holds a table of numbers. bptt train --horizon 1 forecasts it{named}; to read its "
            f"characters, give --read-as text"
        )
    with user_errors(prefix="--data "):
        with contextlib.suppress(OSError):  # load_text says what is wrong
            if source != PYTHON_DOCS and stat.S_ISREG((found := Path(source).stat()).st_mode):
                must_have_room(_OF_A_BYTE * found.st_size, f"--data {source}", "this text", "Give a part of it")
        return load_text(source)


def _table(source: str) -> bool:
    """Whether the first lines of a file are rows of numbers, equally many in each."""
    try:
        if not stat.S_ISREG(Path(source).stat().st_mode):  # a pipe would be waited for
            return False
        with open(source, "rb") as file:
            lines = file.read(LOOKED_AT).decode("utf-8-sig").splitlines()[:-1]
    except (OSError, ValueError):  # load_text says what is wrong
        return False
    rows = [re.split(r"[,;\t ]+", line.strip()) for line in lines if line.strip()]
    return len(rows) >= 3 and len({len(row) for row in rows}) == 1 and all(map(_is_number, itertools.chain(*rows)))


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan", word, re.ASCII | re.IGNORECASE) is not None


def small_text(path: Path, most: int = SETTINGS_MOST) -> str:
    """`bptt.runs.settings.small_text` with its errors as `UserError`."""
    with user_errors():
        return settings.small_text(path, most)


def read_settings(path: Path, as_written: bool = False) -> dict[str, Any]:
    """`bptt.runs.settings.read_settings` with its errors as `UserError`."""
    with user_errors():
        return settings.read_settings(path, as_written)
