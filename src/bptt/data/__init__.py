"""Text as streams: characters to ids, ids to contiguous lanes, lanes to chunks with the state carried; and tasks."""

from bptt.data import tasks
from bptt.data.lanes import chunks, continuous, lanes
from bptt.data.text import PYTHON_DOCS, Vocabulary, load_text, split

__all__ = ["PYTHON_DOCS", "Vocabulary", "chunks", "continuous", "lanes", "load_text", "split", "tasks"]
