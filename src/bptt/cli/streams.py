"""Standard streams as they may be: closed from the start, without a reader, on a full disk."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any


class OutputLost(Exception):
    """Standard output can't be written to any more; raised once, by the write that failed."""


class _Raw(io.FileIO):
    """A descriptor that keeps the error of its first failed write, and from then on drops what is written."""

    def __init__(self, number: int, go_on: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self.error: OSError | None = None
        self._go_on = go_on

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                while (count := super().write(data)) is None:  # another program made the pipe non-blocking
                    select.select([], [self], [])
                return count
            except OSError as error:
                self.error = error
                if not self._go_on:
                    raise OutputLost from error
        return len(data)


class Streams:
    """While entered, standard output and errors never raise an `OSError`, which would look like one of a file.

    A stream that was closed at the start is the null device: the next file to be opened would get its number, and
    messages that are meant for the stream would land in that file.

    Arguments:
        go_on: let a command work on without its output; otherwise the first failed write to it raises `OutputLost`.
    """

    def __init__(self, go_on: bool) -> None:
        self._go_on = go_on

    def __enter__(self) -> Streams:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:  # the lowest free number, which in this order is the stream's own
                setattr(sys, name, open(os.devnull, mode))
        self._before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _guarded(sys.stdout, self._go_on), _guarded(sys.stderr, go_on=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.error()
        sys.stdout, sys.stderr = self._before

    def error(self) -> OSError | None:
        """Why output was lost, after everything was written; None if it wasn't."""
        with contextlib.suppress(OutputLost):
            sys.stdout.flush()
        sys.stderr.flush()
        return lost(sys.stdout)


def lost(stream: Any) -> OSError | None:
    """Why nothing can be written to a standard stream any more; None if it can."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Raw) else None


def tell_of_signal(name: str) -> None:
    """Say on stderr that a signal came, and what a second one does; inside a handler."""
    # os.write, since a handler may run while print holds the stream's lock; and nobody may read it any more.
    with contextlib.suppress(OSError):
        told = f"\nstopping after this update; {name} again stops at once, without saving\n"
        os.write(sys.stderr.fileno(), told.encode())


def tell_terminal(line: str) -> None:
    """Show a line on the terminal that this process belongs to, if it does to one, whatever the streams are."""
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_WRONLY)
        try:
            os.write(terminal, (line + "\n").encode(errors="backslashreplace"))
        finally:
            os.close(terminal)


def _guarded(stream: Any, go_on: bool) -> Any:
    """The stream on a descriptor that doesn't fail; one that isn't a plain file, such as a test's, as it is."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    # A terminal that knows only ASCII shows \u2014 and goes on.
    stream.reconfigure(errors="backslashreplace")
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if type(stream) is not io.TextIOWrapper or type(raw) is not io.FileIO:
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(raw.fileno(), go_on)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )
