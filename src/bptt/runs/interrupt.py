"""Ctrl-C, and being asked to end, as questions that a loop answers between two updates."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

NAMES = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}


class Interrupt:
    """While entered, the first SIGINT, SIGTERM or SIGHUP only sets `code`; a second one kills as it always does.

    An exception thrown in the middle of an optimizer step would leave weights half updated, and those would be saved.
    SIGHUP and SIGTERM that were ignored before, as under nohup, stay so. SIGINT doesn't: shells ignore it for every job
    in the background. Outside the main thread signals stay what they were.

    Arguments:
        most: the largest of the codes of all processes that train together, each of which asks equally often.
        tell: called with the signal's name when the first one comes, inside its handler: it may not print by `print`.

    >>> import os
    >>> with Interrupt() as interrupt:
    ...     for step in range(1000):
    ...         os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler does
    ...         if interrupt.asked:
    ...             break  # here the loop saves
    >>> step, interrupt.code
    (0, 143)
    """

    def __init__(self, most: Callable[[int], float] = int, tell: Callable[[str], object] | None = None) -> None:
        self._most, self._tell = most, tell
        self.code = 0
        """What a shell gives for the signal that came (130, 143, 129); 0 before."""
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether one came, here or to another process."""
        code = int(self._most(self.code))
        self.code = self.code or code  # one that has come since is told of next time
        return code != 0

    def __enter__(self) -> Self:
        # Python lets only the main thread set a handler.
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.code = 128 + number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if self._tell is not None:
            self._tell(NAMES[signal.Signals(number).name])
