"""What looks at a model instead of training it, and how results show themselves: tables, records, plots, verdicts."""

from bptt._machine import memory_here
from bptt.analysis.explanation import Example, example, explorer
from bptt.analysis.history import History
from bptt.analysis.numbers import ladder, number, share, size
from bptt.analysis.shown import Shown, Table, Titled

__all__ = [
    "Example", "History", "Shown", "Table", "Titled",
    "example", "explorer", "ladder", "memory_here", "number", "share", "size",
]  # fmt: skip
