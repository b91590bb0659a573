"""Tables and lines of a command that measures something, nothing of what comes from outside being markup."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bptt.analysis.numbers import printable
from bptt.cli.printing import fields, fitted


class Screen:
    """Where a command prints what it found.

    console: None for standard output as it is.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(markup=False, highlight=False, emoji=False)

    def say(self, text: str = "", fit: bool = True) -> None:
        """Print text, control characters escaped, its lines broken between words where they are too wide.

        fit: False for text that must stay as it is.
        """
        shown = printable(text)
        self.console.print(Text(fitted(shown, self.console.width) if fit else shown), soft_wrap=True)

    def waiting(self, text: str) -> contextlib.AbstractContextManager[object]:
        """A sign of life on a terminal, gone at the end."""
        return self.console.status(Text(text)) if self.console.is_terminal else contextlib.nullcontext()

    def table(self, names: Sequence[str], rows: Sequence[Sequence[str]], words: int = 0) -> None:
        """Print a table, its first columns, as many as `words`, aligned to the left, the others to the right.

        Where the terminal is too narrow for its cells, each row is a paragraph that names its values.
        """
        columns = [[name, *(row[i] for row in rows)] for i, name in enumerate(names)]
        least = [max(map(len, [*name.split(), *cells])) for name, *cells in columns]
        width = self.console.width
        if sum(least) + 3 * (len(names) - 1) > width:
            for row in rows:
                named = [f"{name} {value}".strip() for name, value in zip(names, row, strict=True) if value]
                self.console.print(Text(fields(named, width)), soft_wrap=True)
            return
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i, (name, most) in enumerate(zip(names, least, strict=True)):
            table.add_column(Text(name), justify="left" if i < words else "right", min_width=most)
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)
