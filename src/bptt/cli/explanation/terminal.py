"""The worked example in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from bptt.analysis.numbers import printable
from bptt.cli.explanation.tables import Section, Table, Term
from bptt.cli.printing import one_line

GAP, BETWEEN = 2, 4
"""Spaces between columns, and between tables."""


def show(sections: Sequence[Section], term: Term) -> str:
    """Everything as text for this terminal's width and colours; `term` is written out after the section of terms."""
    console = Console(markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        for count, section in enumerate(sections, 1):
            console.print()
            console.rule(_text(f"{count}. {section.title}", "bold"), align="left")
            for equation in section.equations:
                console.print(_indented(equation))
            for text in (*(text.replace("`", "") for text in section.texts), section.source):
                if text:
                    console.print()
                    console.print(_text(one_line(text)))
            _tables(console, section.tables, (term.t, term.k))
            if section.name == "terms":
                console.print()
                console.print(_text(f"Term t = {term.t}, k = {term.k}, written out", "bold"))
                console.print(_indented(term.path))
                _tables(console, term.tables)
    return capture.get()


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style)


def _indented(text: str) -> Padding:
    return Padding(_text(text), (0, 0, 0, 4))


def _tables(console: Console, tables: Sequence[Table], chosen: tuple[int, int] | None = None) -> None:
    """In order, as many side by side as fit."""
    line: list[tuple[RenderableType, int]] = []
    for table in tables:
        block = _blocks(table, console.width, chosen if table.chosen else None)
        wide = Measurement.get(console, console.options, block).maximum + BETWEEN
        if line and sum(width for _, width in line) + wide - BETWEEN > console.width:
            _line(console, line)
            line = []
        line.append((block, wide))
    _line(console, line)


def _line(console: Console, line: Sequence[tuple[RenderableType, int]]) -> None:
    if line:
        console.print()
        grid = Grid.grid(padding=(0, BETWEEN, 0, 0), pad_edge=False)
        grid.add_row(*(block for block, _ in line))
        console.print(grid)


def _blocks(table: Table, width: int, chosen: tuple[int, int] | None) -> RenderableType:
    """The table, in several parts below each other where its columns don't fit the terminal."""
    first, *more = [_grid(table, columns, chosen) for columns in _fitting(table, width)]
    return Group(_text(table.title, "bold"), first, *(part for grid in more for part in ("", grid)))


def _fitting(table: Table, width: int) -> Iterator[range]:
    """Runs of columns that fit the width beside the names of the rows."""
    left = max(Text(printable(name)).cell_len for name in (table.corner, *table.rows))
    wide = [
        GAP + max(Text(printable(text)).cell_len for text in (name, *(row[i] for row in table.cells)))
        for i, name in enumerate(table.columns)
    ]
    parts = -(-sum(wide) // max(1, width - left))
    most = -(-len(wide) // parts)  # columns of a part, so that none has much fewer than the others
    first, used = 0, left
    for i, this in enumerate(wide):
        if i > first and (used + this > width or i - first == most):
            yield range(first, i)
            first, used = i, left
        used += this
    yield range(first, len(wide))


def _grid(table: Table, columns: range, chosen: tuple[int, int] | None) -> Grid:
    grid = Grid(box=None, padding=(0, 0, 0, GAP), pad_edge=False)
    grid.add_column(_text(table.corner), style="dim")
    for i in columns:
        grid.add_column(_text(table.columns[i]), justify="right", header_style="dim")
    for place, (name, cells) in enumerate(zip(table.rows, table.cells, strict=True)):
        texts = [_text(cells[i], "bold reverse" if chosen == (place, i) else "") for i in columns]
        if any(cells[i] for i in columns):
            grid.add_row(_text(name), *texts)
    return grid
