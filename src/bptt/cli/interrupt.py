"""Ctrl-C as a question that training answers between two updates."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType


class Interrupt:
    """While entered, the first Ctrl-C only sets `asked`; a second one kills as it always does.

    An exception thrown in the middle of an optimizer step would leave weights half updated, and those would be saved.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        # Python lets only the main thread set a handler; elsewhere Ctrl-C stays what it was.
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # os.write, since a handler may run while print holds the stream's lock; and nobody may read it any more.
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), b"\nstopping after this update; Ctrl-C again stops at once, without saving\n")
