"""Ctrl-C, and being asked to end, as questions that training answers between two updates."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_NAMES = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}


class Interrupt:
    """While entered, the first SIGINT, SIGTERM or SIGHUP only sets `code`; a second one kills as it always does.

    An exception thrown in the middle of an optimizer step would leave weights half updated, and those would be saved.
    SIGHUP and SIGTERM that were ignored before, as under nohup, stay so. SIGINT doesn't: shells ignore it for every job
    in the background.

    most: the largest of the codes of all processes that train together, each of which asks equally often.
    """

    def __init__(self, most: Callable[[int], float] = int) -> None:
        self._most = most
        self.code = 0
        """What a shell gives for the signal that came (130, 143, 129); 0 before."""
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether one came, here or to another process."""
        code = int(self._most(self.code))
        self.code = self.code or code  # one that has come since is told of next time
        return code != 0

    def __enter__(self) -> Interrupt:
        # Python lets only the main thread set a handler; elsewhere signals stay what they were.
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.code = 128 + number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        name = _NAMES[signal.Signals(number).name]
        # os.write, since a handler may run while print holds the stream's lock; and nobody may read it any more.
        with contextlib.suppress(OSError):
            told = f"\nstopping after this update; {name} again stops at once, without saving\n"
            os.write(sys.stderr.fileno(), told.encode())
