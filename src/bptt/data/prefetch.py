"""A stream read ahead in a thread, whose place is that of what was handed out."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

from bptt import Chunk


class _Read(NamedTuple):
    """What the thread passes on: a chunk, or what ended the stream, and the stream's state after it."""

    chunk: Any
    end: BaseException | None
    state: Any


class Prefetch(Iterator[Chunk]):
    """The chunks of a stream in their order, read by a thread while the model computes.

    `state_dict` is the stream's state after the chunk handed out last, wherever the thread is by then, so that a
    resumed run has the same bits; for a stream without a state it is None, and the stream is read again from its start.
    An error in the stream is raised where its chunk would have come. The thread ends with the stream, or once this
    object is no longer used. Only the thread touches the stream, with torch's thread-local settings (`no_grad`,
    autocast) at their defaults.

    Arguments:
        stream: an iterable of chunks that doesn't depend on what the model does; one with `state_dict` and
            `load_state_dict`, such as `Lanes`, keeps its place.
        ahead: the most chunks that are read in advance, which take memory.

    Raises: ValueError for ahead below 1; TypeError for anything but an iterable.

    >>> import torch
    >>> from bptt.data import Lanes
    >>> stream = Prefetch(Lanes(torch.arange(20), batch=2, length=4))
    >>> next(stream).inputs[:, 0].tolist(), stream.state_dict()["step"]
    ([0, 1, 2, 3], 4)
    """

    def __init__(self, stream: Iterable[Chunk], ahead: int = 2) -> None:
        if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 1:
            raise ValueError(f"Prefetch(ahead={ahead!r}): must be a whole number of at least 1.")
        if not isinstance(stream, Iterable):
            raise TypeError(f"stream must be an iterable of chunks, not {type(stream).__name__}.")
        self._stream: Any = stream
        self.sampler, self.batch_sampler = (getattr(stream, name, None) for name in ("sampler", "batch_sampler"))
        self._ahead, self._state = ahead, _state(stream)
        self._thread: threading.Thread | None = None
        self._end: BaseException | None = None

    def __next__(self) -> Chunk:
        if self._thread is None:
            self._begin()
        if self._end is None:
            chunk, self._end, self._state = self._ready.get()
            self._room.release()
            if self._end is None:
                return chunk
        raise self._end

    def _begin(self) -> None:
        """Start the thread, which doesn't refer to this object: it would otherwise keep it in use for ever."""
        self._ready: SimpleQueue[_Read] = SimpleQueue()
        self._room, left = threading.Semaphore(self._ahead), threading.Event()
        self._leave = weakref.finalize(self, _leave, self._room, left)
        words = (self._stream, self._ready, self._room, left)
        self._thread = threading.Thread(target=_read, args=words, name="bptt prefetch", daemon=True)
        self._thread.start()

    def state_dict(self) -> Any:
        """The stream's state from before the chunk that comes next; None for a stream without one."""
        return copy.deepcopy(self._state)

    def load_state_dict(self, state: Any) -> None:
        """Go to a place that `state_dict` gave, once the thread has finished its chunk; ValueError if the stream has
        no state."""
        if not hasattr(self._stream, "load_state_dict"):
            raise ValueError(
                f"load_state_dict: a {type(self._stream).__name__} keeps no place: pass Prefetch a stream with "
                f"state_dict and load_state_dict, such as bptt.data.Lanes."
            )
        if self._thread is not None:
            self._leave()
            self._thread.join()
            self._thread = self._end = None
        self._stream.load_state_dict(state)
        self._state = _state(self._stream)


def _state(stream: Any) -> Any:
    """A copy of a stream's state, None for one without."""
    return copy.deepcopy(stream.state_dict()) if hasattr(stream, "state_dict") else None


def _leave(room: threading.Semaphore, left: threading.Event) -> None:
    """Tell the thread that nobody is waiting for it."""
    left.set()
    room.release()


def _read(stream: Any, ready: SimpleQueue[_Read], room: threading.Semaphore, left: threading.Event) -> None:
    """What the thread does: read a chunk for each free place, until the stream ends, fails or is abandoned."""
    try:
        chunks = iter(stream)
        while True:
            room.acquire()
            if left.is_set():
                return
            try:
                chunk = next(chunks)
            except StopIteration:
                ready.put(_Read(None, StopIteration(), _state(stream)))
                return
            ready.put(_Read(chunk, None, _state(stream)))
            del chunk  # it is the consumer's now
    except BaseException as error:  # whatever it is, someone is waiting for it
        ready.put(_Read(None, error, None))
