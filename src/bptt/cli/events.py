"""A run as TensorBoard shows it: numbers of the metrics file as curves, settings and sample as text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

CURVES = ("loss", "bpc", "grad_norm", "cotangent_norm", "window", "memory_bytes")
"""Names in a record of the metrics that become curves, as `train/loss` or `valid/loss`."""


class Events:
    """A file of events, a curve's point or a text each; whole to the last one however the process ends.

    Arguments:
        path: the file, which is made; TensorBoard finds it if its name holds "tfevents".
        began: when the run did, seconds since 1970.

    Raises: ImportError without TensorBoard; OSError.
    """

    def __init__(self, path: Path, began: float) -> None:
        # Only TensorBoard's own writer of files is used: torch's starts a thread, which loses what it holds when the
        # process is killed, and is slower.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        self._began = began
        self._writer = RecordWriter(path.open("wb", buffering=0))
        self._write(began, file_version="brain.Event:2")

    def add(self, record: dict[str, Any]) -> None:
        """A point of each curve that a record of the metrics has a number for."""
        points = [
            self._summary.Summary.Value(tag=f"{record['kind']}/{name}", simple_value=record[name])
            for name in CURVES
            if record.get(name) is not None
        ]
        when = self._began + record["elapsed"]
        self._write(when, step=record["step"], summary=self._summary.Summary(value=points))

    def text(self, tag: str, text: str, step: int) -> None:
        """A text, in Markdown."""
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        kind = create_summary_metadata(display_name=tag, description="")
        value = self._summary.Summary.Value(tag=tag, metadata=kind, tensor=make_tensor_proto(text))
        self._write(time.time(), step=step, summary=self._summary.Summary(value=[value]))

    def close(self) -> None:
        """Nothing more can be added."""
        self._writer.close()

    def _write(self, when: float, **what: Any) -> None:
        self._writer.write(self._event.Event(wall_time=when, **what).SerializeToString())
