"""Text and series as streams: lanes side by side, cut into chunks, with the state carried; and tasks."""

from bptt.data import tasks
from bptt.data.characters import Characters
from bptt.data.lanes import chunks, continuous, lanes
from bptt.data.missing import observed
from bptt.data.packing import pack
from bptt.data.prefetch import Prefetch
from bptt.data.stream import Lanes
from bptt.data.table import WEATHER, Table, load_series
from bptt.data.text import PYTHON_DOCS, Vocabulary, load_text, split

__all__ = [
    "PYTHON_DOCS",
    "WEATHER",
    "Characters",
    "Lanes",
    "Prefetch",
    "Table",
    "Vocabulary",
    "chunks",
    "continuous",
    "lanes",
    "load_series",
    "load_text",
    "observed",
    "pack",
    "split",
    "tasks",
]
