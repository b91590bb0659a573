"""The worked example as text of a given width."""

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

from bptt.analysis.explanation.tables import Section, Term, Titled
from bptt.analysis.numbers import printable

GAP, BETWEEN, INDENT = 2, 4, 4
"""Spaces between columns, between tables, and before an equation."""
STYLES = {"bold": "1", "dim": "2", "bold reverse": "1;7"}
"""As a terminal is asked for them."""

Line = list[tuple[str, str]]
"""Texts with their styles, "" for none."""


def text(sections: Sequence[Section], term: Term, width: int, styled: bool = False) -> str:
    """Everything; `term` is written out after the section of terms.

    width: columns; a word or table column that is wider stays whole. styled: with a terminal's codes for bold and dim.
    """
    lines: list[Line] = []
    for count, section in enumerate(sections, 1):
        title = f"{count}. {section.title}"
        lines += [[], [(title, "bold"), (" " + "─" * (width - len(title) - 1), "dim")]]
        for equation in section.equations:
            lines += _wrapped(equation, width, INDENT)
        for prose in (*(each.replace("`", "") for each in section.texts), section.source):
            if prose:
                lines += [[], *_wrapped(" ".join(printable(prose).split()), width)]
        lines += _tables(section.tables, width, (term.t, term.k))
        if section.name == "terms":
            lines += [[], [(f"Term t = {term.t}, k = {term.k}, written out", "bold")]]
            lines += _wrapped(term.path, width, INDENT)
            lines += _tables(term.tables, width)
    return "".join(_shown(line, styled) + "\n" for line in lines)


def _shown(line: Line, styled: bool) -> str:
    while line and not line[-1][0].strip():
        line = line[:-1]
    if not styled:
        return "".join(part for part, _ in line).rstrip()
    return "".join(f"\x1b[{STYLES[style]}m{part}\x1b[0m" if style else part for part, style in line)


def _wrapped(prose: str, width: int, indent: int = 0) -> list[Line]:
    lines = textwrap.wrap(printable(prose), max(width - indent, 1), break_long_words=False, break_on_hyphens=False)
    return [[(" " * indent + line, "")] for line in lines]


def _tables(tables: Sequence[Titled], width: int, chosen: tuple[int, int] | None = None) -> Iterator[Line]:
    """In order, as many side by side as fit."""
    beside: list[list[Line]] = []
    for table in tables:
        block = _block(table, width, chosen if table.chosen else None)
        if beside and sum(_wide(other) + BETWEEN for other in beside) + _wide(block) > width:
            yield from _joined(beside)
            beside = []
        beside.append(block)
    yield from _joined(beside)


def _joined(blocks: Sequence[list[Line]]) -> Iterator[Line]:
    if blocks:
        yield []
    for i in range(max(map(len, blocks), default=0)):
        line: Line = []
        for block in blocks:
            this = block[i] if i < len(block) else []
            line += [*this, (" " * (_wide(block) + BETWEEN - _wide([this])), "")]
        yield line


def _wide(block: Sequence[Line]) -> int:
    return max(sum(_cells(part) for part, _ in line) for line in block)


def _cells(shown: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in shown)


def _block(table: Titled, width: int, chosen: tuple[int, int] | None) -> list[Line]:
    """The table under its title, in several parts below each other where its columns are wider than the line."""
    title = [[(part, "bold") for part, _ in line] for line in _wrapped(table.title, width)]
    first, *more = [_grid(table, columns, chosen) for columns in _fitting(table, width)]
    return [*title, *first, *(line for grid in more for line in ([], *grid))]


def _columns(table: Titled) -> list[list[str]]:
    """The texts of each column, its name first."""
    return [[printable(cell) for cell in column] for column in zip(table.table.columns, *table.table.rows, strict=True)]


def _fitting(table: Titled, width: int) -> Iterator[range]:
    """Runs of columns that fit the width beside the names of the rows."""
    names, *columns = _columns(table)
    left, wide = max(map(_cells, names)), [GAP + max(map(_cells, column)) for column in columns]
    parts = -(-sum(wide) // max(1, width - left))
    most = -(-len(wide) // parts)  # columns of a part, so that none has much fewer than the others
    first, used = 1, left
    for i, this in enumerate(wide, 1):
        if i > first and (used + this > width or i - first == most):
            yield range(first, i)
            first, used = i, left
        used += this
    yield range(first, len(wide) + 1)


def _grid(table: Titled, columns: range, chosen: tuple[int, int] | None) -> list[Line]:
    all_columns = _columns(table)
    names, *cells = all_columns[0], *(all_columns[i] for i in columns)
    wide = [max(map(_cells, column)) for column in (names, *cells)]
    lines: list[Line] = []
    for place, (name, *row) in enumerate(zip(names, *cells, strict=True), -1):
        line: Line = [(name + " " * (wide[0] - _cells(name)), "dim")]
        for i, cell, room in zip(columns, row, wide[1:], strict=True):
            style = "dim" if place < 0 else "bold reverse" if chosen == (place, i - 1) else ""
            line += [(" " * (GAP + room - _cells(cell)), ""), (cell, style)]
        if place < 0 or any(row):
            lines.append(line)
    return lines
