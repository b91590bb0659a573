"""Arrays that grow on disk: rows are appended in stretches to an unnamed file, which is mapped read-only."""

from __future__ import annotations

import importlib
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

ROWS = 1 << 16
"""How many steps are looked at at a time."""


def needed(module: str, what: str) -> Any:
    """A module of the extra `data`, or an error that says how to get it."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library that the module loads isn't there
        package = module.partition(".")[0]
        raise ModuleNotFoundError(f"{what} takes the package {package}: pip install 'bptt[data]'.") from error


class Spool:
    """Rows of one dtype, appended to an unnamed file that disappears with its last map.

    columns: values per row; None for rows that are plain numbers.
    """

    def __init__(self, dtype: str, columns: int | None = None) -> None:
        self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # a map of it stays
        self._dtype, self._shape, self._rows = dtype, () if columns is None else (columns,), 0

    def add(self, rows: Any) -> None:
        """Append an array (n, columns), or (n,)."""
        self._file.write(rows.astype(self._dtype, order="C", copy=False).data)
        self._rows += len(rows)

    def mapped(self) -> Any:
        """All rows, as a memmap of mode "r"."""
        np, shape = needed("numpy", "a table"), (self._rows, *self._shape)
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", shape=shape) if self._rows else np.empty(shape, self._dtype)


def stretches(rows: int, overlap: int = 0) -> Iterator[slice]:
    """Slices of at most `ROWS` rows that cover all rows, each beginning `overlap` rows before the end of the last."""
    for start in range(0, max(rows - overlap, 1), ROWS):
        yield slice(start, min(start + ROWS + overlap, rows))
