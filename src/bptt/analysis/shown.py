"""What every result of an analysis can do: say what it comes to, be a table, a plot, records, plain data."""

import html
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from bptt.analysis.plain import from_plain, to_plain


class Table(NamedTuple):
    """Rows of texts under the names of their columns, the first few, as many as `words`, words and the others numbers.

    >>> print(Table(("strategy", "bias"), [("full", "0"), ("tbptt:5", "0.25")]))
    strategy  bias
    full         0
    tbptt:5   0.25
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = ["<" if i < self.words else ">" for i in range(len(widths))]
        return "\n".join("  ".join(map("{:{}{}}".format, line, sides, widths)) for line in lines)

    def markdown(self) -> str:
        """As a table of Markdown.

        >>> print(Table(("strategy", "bias"), [("full", "0")]).markdown())
        | strategy | bias |
        |:--|--:|
        | full | 0 |
        """
        sides = "".join(":--|" if i < self.words else "--:|" for i in range(len(self.columns)))
        first, *rest = [f"| {' | '.join(row)} |" for row in (self.columns, *self.rows)]
        return "\n".join([first, f"|{sides}", *rest])

    def html(self) -> str:
        """As an element of a page, in whatever colours the page has."""

        def cells(line: Sequence[str], tag: str) -> str:
            sides = ["left" if i < self.words else "right" for i in range(len(line))]
            return "".join(
                f'<{tag} style="text-align:{side};padding:0 .6em">{html.escape(cell)}</{tag}>'
                for side, cell in zip(sides, line, strict=True)
            )

        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.rows)
        style = ' style="color:inherit"'  # a page in quirks mode gives tables its own
        return f"<table{style}><thead><tr>{cells(self.columns, 'th')}</tr></thead><tbody>{body}</tbody></table>"


class Titled(NamedTuple):
    """A table under a title.

    levels: how strongly each entry is shaded, 0 .. 8, in a heat map; () in any other table.
    chosen: whether entry [t][k] of the heat map can be picked.
    """

    title: str
    table: Table
    levels: tuple[tuple[int, ...], ...] = ()
    chosen: bool = False


class Shown:
    """A frozen dataclass that shows itself.

    In a notebook it's a table with the verdict below; `print` gives the same as text.
    """

    @abstractmethod
    def verdict(self) -> str:
        """What it comes to, a line for each thing that can be said, every name and number from the results."""

    @abstractmethod
    def table(self) -> Table:
        """What was found, as texts."""

    def tables(self) -> list[Titled]:
        """All tables that are printed, in order; most results have one, without a title."""
        return [Titled("", self.table())]

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """A flat dictionary for each row, as `pandas.DataFrame` takes them: texts, numbers and None."""

    @abstractmethod
    def plot(self, ax: Any = None) -> Any:
        """Draw what was found, in the colours of matplotlib's style, into `ax` or a new figure; returns the axes."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data that JSON holds: NaN as None, tensors as lists, strategies by class and fields.

        Raises: TypeError for a strategy of a class of your own; `records` says it as text.
        """
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `to_dict` was taken of. Raises ValueError for anything else."""
        try:
            return from_plain(cls, data)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"from_dict: this isn't what {cls.__name__}.to_dict() gives ({error}).") from error

    def __str__(self) -> str:
        tables = (f"{title}\n{table}\n" if title else str(table) for title, table, *_ in self.tables())
        return "\n".join([*tables, self.verdict()])

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(line)}</p>" for line in self.verdict().splitlines()]
        for title, table, *_ in reversed(self.tables()):
            parts = [f"<p><b>{html.escape(title)}</b></p>" * bool(title), table.html(), *parts]
        return "".join(parts)


def axes(ax: Any, rows: int = 0) -> Any:
    """`ax`, or the axes of a new figure with room for so many rows. Raises ImportError without matplotlib."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("plot() needs matplotlib, which isn't installed: pip install matplotlib.") from None
    width, height = pyplot.rcParams["figure.figsize"]
    return pyplot.subplots(figsize=(1.3 * width if rows else width, max(height, 0.45 * rows)), layout="constrained")[1]
