"""CSV files: their delimiter, header and encoding found, and their cells read as text, stretch by stretch."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bptt.data.cells import DATE, NUMBER, is_missing
from bptt.data.spool import needed

HEAD = 1 << 20  # bytes from which the form of a file is found


class Form(NamedTuple):
    """How a file is written: its delimiter, the names of its columns, and whether its first row holds them.

    unnamed: whether that row begins with an empty cell, as it does above an index.
    """

    delimiter: str
    names: list[str]
    header: bool
    unnamed: bool


def form(path: Path) -> Form:
    """The form of a CSV file, by its first rows; ValueError for a file that is empty or isn't UTF-8 text."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        head = file.read(HEAD)
    if not head.strip():
        raise ValueError("the file is empty.")
    if len(head) == HEAD:
        head = head[: head.rfind(b"\n") + 1] or head
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(_not_text(f"byte {error.start} cannot be decoded")) from None
    if "\0" in text:
        raise ValueError(_not_text(f"byte {head.index(0)} is zero"))
    try:
        delimiter = "\t" if ".tsv" in path.suffixes else _delimiter(text)
        first, *rows = _rows(text, delimiter, 2)
    except csv.Error as error:
        raise ValueError(f"cannot be read as CSV ({error}).") from None
    cells = [" ".join(cell.split()) for cell in first]
    header = not all(_plain(cell, delimiter) for cell in cells)
    if header and not rows:
        raise ValueError("holds a header and no row of numbers.")
    names = [cell or str(i) for i, cell in enumerate(cells, 1)] if header else [str(i + 1) for i in range(len(cells))]
    return Form(delimiter, names, header, header and not cells[0])


def _rows(text: str, delimiter: str, count: int) -> list[list[str]]:
    """The first rows that aren't empty lines, as lists of cells."""
    return list(islice(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), count))


def _delimiter(text: str) -> str:
    """The mark that cuts the first rows into equally many cells, more than one; a comma if none does."""
    for mark in "\t;,":
        counts = {len(row) for row in _rows(text, mark, 10)}
        if counts != {1} and len(counts) == 1:
            return mark
    first = text.strip("\r\n").splitlines()[0]
    return next((mark for mark in "\t;" if mark in first and "," not in first), ",")


def _plain(cell: str, delimiter: str) -> bool:
    """Whether a cell of a first row is data: a number, a date, a truth value or nothing."""
    number = cell if delimiter == "," else cell.replace(",", ".")
    data = NUMBER.fullmatch(number) or DATE.fullmatch(cell) or cell.lower() in ("true", "false", "inf", "-inf")
    return bool(data) or is_missing(cell)


def batches(path: Path, told: Form) -> Iterator[list[Any]]:
    """The columns of a file as Arrow arrays of text, some thousand rows at a time.

    Empty lines are skipped, except in a file of one column, where they are empty cells.
    """
    arrow, reader = needed("pyarrow", "a .csv file"), needed("pyarrow.csv", "a .csv file")
    names = [str(i) for i in range(len(told.names))]
    ragged: list[str] = []

    def invalid(row: Any) -> str:
        ragged.append(f"row {row.number} has {row.actual_columns} cells and the first row {row.expected_columns}")
        return "error"

    try:
        with arrow.input_stream(os.fspath(path), compression="detect") as stream:
            for batch in reader.open_csv(
                stream,
                read_options=reader.ReadOptions(
                    use_threads=False, block_size=HEAD, column_names=names, skip_rows_after_names=int(told.header)
                ),
                parse_options=reader.ParseOptions(
                    delimiter=told.delimiter,
                    newlines_in_values=True,
                    ignore_empty_lines=len(names) > 1,
                    invalid_row_handler=invalid,
                ),
                convert_options=reader.ConvertOptions(column_types=dict.fromkeys(names, arrow.string())),
            ):
                yield batch.columns
    except arrow.ArrowInvalid as error:
        text = str(error)
        if ragged:
            raise ValueError(
                f"{ragged[0]}: give every row a cell for each column, empty where there is none."
            ) from None
        if "UTF8" in text:
            row = text.partition("Row #")[2].partition(":")[0]
            raise ValueError(_not_text(f"row {row} cannot be decoded")) from None
        raise ValueError(f"cannot be read as CSV ({' '.join(text.split())}).") from None


def _not_text(what: str) -> str:
    return f"not a UTF-8 text ({what}). Convert it to UTF-8 first."
