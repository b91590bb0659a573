"""A run as TensorBoard shows it: curves and texts, in a file that is whole to its last event."""

import importlib
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """A file of events, a curve's point or a text each; whole to the last one however the process ends.

    torch's SummaryWriter starts a thread, which loses what it holds when the process is killed; here an event is in
    the file when the call returns.

    Arguments:
        path: the file, which is made; TensorBoard finds it if its name holds "tfevents".
        began: when the run did, seconds since 1970; now if None.

    Raises: ImportError without TensorBoard; OSError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     events = Events(f"{folder}/events.out.tfevents.mine")
    ...     events.add(1, {"train/loss": 0.7, "train/norm": 1.2})
    ...     events.text("settings", "lr 0.01")
    ...     events.close()
    """

    def __init__(self, path: str | Path, began: float | None = None) -> None:
        try:
            protocol = "tensorboard.compat.proto"
            self._event: Any = importlib.import_module(f"{protocol}.event_pb2")
            self._summary: Any = importlib.import_module(f"{protocol}.summary_pb2").Summary
            writer = importlib.import_module("tensorboard.summary.writer.record_writer").RecordWriter
        except ImportError:
            raise ImportError("Events needs tensorboard, which isn't installed: pip install tensorboard.") from None
        self._began = time.time() if began is None else began
        self._writer = writer(io.FileIO(path, "wb"))
        self._write(self._began, file_version="brain.Event:2")

    def add(self, step: int, values: Mapping[str, float], seconds: float | None = None) -> None:
        """A point of each curve: name -> value after `step`. seconds: since the run began; None is now."""
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        when = time.time() if seconds is None else self._began + seconds
        self._write(when, step=step, summary=self._summary(value=points))

    def text(self, name: str, text: str, step: int = 0) -> None:
        """A text, in Markdown."""
        metadata = importlib.import_module("tensorboard.plugins.text.metadata")
        tensor = importlib.import_module("tensorboard.util.tensor_util").make_tensor_proto(text)
        kind = metadata.create_summary_metadata(display_name=name, description="")
        value = self._summary.Value(tag=name, metadata=kind, tensor=tensor)
        self._write(time.time(), step=step, summary=self._summary(value=[value]))

    def close(self) -> None:
        """Nothing more can be added."""
        self._writer.close()

    def _write(self, when: float, **what: Any) -> None:
        self._writer.write(self._event.Event(wall_time=when, **what).SerializeToString())
