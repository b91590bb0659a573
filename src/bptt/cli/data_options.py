"""Options that say what is read, for every command that takes a text, numbers, or a model of one's own."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bptt.cli.config import PLAIN
from bptt.cli.printing import UserError
from bptt.data import PYTHON_DOCS

NUMBERS = (".csv", ".tsv", ".parquet", ".npy", ".wav")
"""Endings of files that hold numbers in order; `.gz` may follow the first two."""
WEATHER_NAME = "weather"
"""The series that comes along, `bptt.data.WEATHER`."""
FROM = tyro.conf.arg(metavar="FILE|python-docs|weather", help_behavior_hint="")
MODEL = tyro.conf.arg(metavar="FILE.py:NAME", help_behavior_hint="")


BUILT_IN = ("cell", "hidden", "layers", "season")
"""Options of some commands for the models that come with bptt."""
OF_NUMBERS = ("columns", "targets", "horizon")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What is read."""

    model: Annotated[tyro.conf.Positional[str | None], MODEL] = None
    """A model of your own: NAME() in FILE.py returns a module, or (module, loss), or (module, loss, stream). The file
    is run as it is. Without it the model is one that comes with bptt."""
    data: Annotated[str | None, FROM] = None
    """UTF-8 text file; or numbers in order, a row per step: .csv, .parquet, .npy or .wav. Two come along: python-docs,
    a text of about 465,000 characters, taken if nothing is given; and weather, a year of hours."""
    read_as: Annotated[Literal["text"] | None, PLAIN] = None
    """Read a table's characters as a text."""
    columns: Annotated[str | None, tyro.conf.arg(metavar="COLUMNS", help_behavior_hint="")] = None
    """Numbers: the columns to read, by commas, in this order. All but the time if not given."""
    targets: Annotated[str | None, tyro.conf.arg(metavar="COLUMNS|FILE", help_behavior_hint="")] = None
    """Numbers: the columns to forecast, by commas; or a second file with a row for each of --data, such as a filter's
    output. All columns if not given."""
    horizon: Annotated[int | None, PLAIN] = None
    """Numbers: forecast each of the next so many steps; a model of your own the last of them. 1 if not given, for a
    second file the same step."""

    def check_data(self) -> None:
        """Raise `UserError` for words that can't be, and options of numbers for what is a text."""
        if self.model is not None and not is_own(self.model):
            raise UserError(f"{self.model}: takes the form FILE.py:NAME, a function in a file that makes your model")
        for name in BUILT_IN if self.model is not None else ():
            if getattr(self, name, None) is not None:
                raise UserError(f"--{name} is of the models that come with bptt, not of {self.model}. Leave it out")
        if self.horizon is not None and self.horizon < 1:
            raise UserError(f"--horizon {self.horizon}: must be at least 1")
        for name in OF_NUMBERS:
            if getattr(self, name) is not None and self.kind != "numbers":
                what = f"--data {self.data or PYTHON_DOCS} is a text" if self.kind == "text" else "--data isn't given"
                raise UserError(f"--{name} applies only to numbers ({', '.join(NUMBERS)}), and {what}. Leave it out")

    @property
    def kind(self) -> str:
        """What the data are, by name or as was said: "text", "numbers", or "own" for a stream of the user's."""
        if self.data is None:
            return "own" if self.model is not None else "text"
        if self.data == PYTHON_DOCS:
            return "text"
        if self.data == WEATHER_NAME:
            return "numbers"
        return self.read_as or ("numbers" if is_numbers(self.data) else "text")


def is_own(word: str) -> bool:
    """Whether a word names a model of the user's own.

    >>> is_own("models/my.py:make"), is_own("my.py"), is_own("runs/my")
    (True, True, False)
    """
    return re.fullmatch(r".*\.py(:\w+)?", word, re.DOTALL) is not None


def is_numbers(path: str) -> bool:
    """Whether a file's name says that it holds numbers in order.

    >>> is_numbers("a/b.CSV"), is_numbers("b.csv.gz"), is_numbers("c.txt")
    (True, True, False)
    """
    return Path(path.lower().removesuffix(".gz")).suffix in NUMBERS
