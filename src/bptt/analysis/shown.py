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

    def html(self) -> str:
        """As an element of a page, in whatever colours the page has."""

        def cells(line: Sequence[str], tag: str) -> str:
            sides = ["left" if i < self.words else "right" for i in range(len(line))]
            return "".join(
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for side, cell in zip(sides, line, strict=True)
            )

        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.rows)
        return f"<table><thead><tr>{cells(self.columns, 'th')}</tr></thead><tbody>{body}</tbody></table>"


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
            raise ValueError(f"from_dict: this is no {cls.__name__}.to_dict() ({error}).") from error

    def __str__(self) -> str:
        return f"{self.table()}\n{self.verdict()}"

    def _repr_html_(self) -> str:
        return self.table().html() + "".join(f"<p>{html.escape(line)}</p>" for line in self.verdict().splitlines())


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


def number(value: float) -> str:
    """Three digits; "none" where there is no number.

    >>> number(0.0123456), number(0.0), number(float("nan"))
    ('0.0123', '0', 'none')
    """
    return "none" if value != value else f"{value:.3g}"


def share(value: float) -> str:
    """A share in per cent; from ten on as so many times.

    >>> share(0.8546), share(0.00583), share(1e-9), share(1.4), share(146.2), share(float("nan"))
    ('85.5%', '0.583%', '<0.001%', '140%', '146 times', 'none')
    """
    if value != value:
        return number(value)
    if 0 < value < 1e-5:
        return "<0.001%"
    return f"{100 * value:.3g}%" if value < 9.995 else f"{value:.3g} times"


def size(count: float) -> str:
    """Bytes in the unit that fits.

    >>> size(512), size(5e6), size(float("nan"))
    ('512 B', '4.768 MiB', 'unknown')
    """
    if count != count:
        return "unknown"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def ladder(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to `most`.

    >>> ladder(60)
    [1, 2, 5, 10, 20, 50]
    """
    return [m * 10**e for e in range(len(str(most))) for m in (1, 2, 5) if m * 10**e <= most]
