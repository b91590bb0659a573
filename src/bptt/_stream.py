"""Chunks seen as one time axis: how far it reaches, what lies between steps a and b, what may be dropped."""

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from bptt import _tree
from bptt._tree import Tree, check_dense, check_no_graph, shape


class Chunk(NamedTuple):
    """A stretch of a stream, of any length; a plain tuple of the first two to four fields works as well.

    inputs: pytree of tensors (T, B, ...).
    targets: pytree of tensors (T, B, ...), or None.
    is_start: bool (T, B): rows whose state is reset to the initial state *before* that step, and that no cotangent
        crosses; or (T,), which resets the whole state. None resets nothing.
    mask: bool (T, B) or (T,): False leaves that loss out, as for a padded step, and whatever is in its place, such as
        NaN, never reaches a gradient. Numbers >= 0 are weights of the losses. None counts all.

    Zeros and ones of any dtype are taken as bool, (T, B, 1) as (T, B), and NumPy arrays as tensors.

    >>> import bptt, torch
    >>> chunk = bptt.Chunk(torch.zeros(5, 2, 3), torch.zeros(5, 2))
    >>> chunk.is_start is None
    True
    """

    inputs: Any
    targets: Any
    is_start: Tensor | None = None
    mask: Tensor | None = None


class _Piece:
    """A chunk in its place: steps [start, stop), leaves with their time axis, rows and mask with time first."""

    def __init__(self, chunk: Chunk, start: int, time_dim: int) -> None:
        inputs, targets = _tree.flatten(chunk.inputs), _tree.flatten(chunk.targets)
        self.values = inputs[0] + targets[0]
        self.inputs = len(inputs[0])
        self.structure = (inputs[1], targets[1])
        self.start = start
        self.stop = start + _tree.leaves(chunk.inputs)[0].shape[time_dim]
        self.is_start, self.mask = (
            rows if rows is None or rows.dim() == 1 else rows.movedim(time_dim, 0)
            for rows in (_tree.ordinary(chunk.is_start), _tree.ordinary(chunk.mask))
        )
        self.resets: list[int] = []
        if self.is_start is not None:
            self.resets = (start + self.is_start.reshape(len(self.is_start), -1).any(1).nonzero().flatten()).tolist()
        self.masked = self.mask is not None and not self.mask.is_meta
        if self.mask is not None and self.masked and self.mask.dtype == torch.bool:
            self.masked = not self.mask.cpu().view(torch.uint8).all()
        self.asking = [i for i, value in enumerate(self.values) if value.requires_grad]
        self.cotangents: dict[int, Tensor] = {}
        self.before: Any = None

    def steps(self, start: int, stop: int, time_dim: int) -> list[Tensor]:
        """Its leaves on steps [start, stop), without a graph."""
        values = [value.detach() for value in self.values] if self.asking else self.values
        if (start, stop) == (self.start, self.stop):
            return values
        return [value.narrow(time_dim, start - self.start, stop - start) for value in values]


def _cat(parts: tuple[Tensor, ...], dim: int) -> Tensor:
    """The stretches of a leaf that a window reads from several chunks, joined."""
    try:
        return torch.cat(parts, dim)
    except RuntimeError as error:
        kinds = {(part.device, *part.shape[:dim], *part.shape[dim + 1 :]) for part in parts}
        if len(kinds) == 1:
            raise
        told = " and ".join(f"{_tree.shape(part)} on {part.device}" for part in parts[:2])
        raise ValueError(f"chunks that one window reads don't go together: {told}.") from error


def _joined(parts: list[tuple[Tensor | None, int, int, int]], missing: bool) -> Tensor:
    """Join rows by step from (rows of a chunk, its start, start, stop), with `missing` where a chunk has none."""
    given = [rows for rows, *_ in parts if rows is not None]
    widest = max(given, key=torch.Tensor.dim)
    given = [rows if rows.dim() == widest.dim() else rows[:, None].expand(-1, widest.shape[1]) for rows in given]
    rest = iter(given)
    whole = [
        widest.new_full((stop - start, *widest.shape[1:]), missing)
        if rows is None
        else next(rest)[start - offset : stop - offset]
        for rows, offset, start, stop in parts
    ]
    return torch.cat(whole) if len(whole) > 1 else whole[0]


def _rows(parts: list[tuple[_Piece, int, int]]) -> tuple[Tensor | None, Tensor | None]:
    is_start = mask = None
    if any(piece.is_start is not None for piece, _, _ in parts):
        is_start = _joined([(piece.is_start, piece.start, start, stop) for piece, start, stop in parts], False)
    if any(piece.mask is not None for piece, _, _ in parts):
        mask = _joined([(piece.mask, piece.start, start, stop) for piece, start, stop in parts], True)
    return is_start, mask


_UNSEEN = object()


class Data(NamedTuple):
    """Steps [a, b) of the stream: rows and mask with time first; leaves that require a gradient as fresh leaves."""

    inputs: Tree
    targets: Tree
    is_start: Tensor | None
    mask: Tensor | None
    tracked: dict[int, Tensor]


def _like_first(tree: Tree, structure: Any, name: str) -> Tree:
    """Inputs or targets in the structure of those of the first chunk; the size that a container notes may differ."""
    try:
        return _tree.conform(tree, structure, sizes=False)
    except ValueError:
        one, other = _tree.show(_tree.structure_of(tree)), _tree.show(structure)
        raise ValueError(
            f"{name} has a different structure from those of the first chunk: {one} against {other}."
        ) from None


def _rows_of_first(tree: Tree, shapes: list[torch.Size], dim: int, name: str) -> None:
    """Raise unless there are as many batch rows as in the first chunk, since the state is carried over."""
    for i, (leaf, first) in enumerate(zip(_tree.leaves(tree), shapes, strict=True)):
        if leaf.dim() != len(first) or (leaf.dim() > 1 and leaf.shape[dim] != first[dim]):
            path = _tree.named_leaves(tree, name)[i][0]
            raise ValueError(
                f"{path} of shape {_tree.shape(leaf)} has other batch rows than in the first chunk, {tuple(first)}: "
                f"the state is carried from chunk to chunk, so every chunk needs the same rows."
            )


class Timeline:
    """The stream as one time axis, read no further than asked and forgotten as soon as allowed."""

    def __init__(self, stream: Iterable[Any], time_dim: int, check: Callable[[Chunk], None]) -> None:
        self.time_dim = time_dim
        self._stream: Any = stream
        self._chunks = None if hasattr(stream, "state_dict") else iter(stream)
        self._check = check
        self._pieces: list[_Piece] = []
        self.end = 0
        self._exhausted = self._any_masked = False
        self._forms: list[Any] = [_UNSEEN, _UNSEEN]  # what the first chunk looked like

    def upto(self, step: float) -> int:
        """Pull chunks until `step` steps exist or the stream ends; return how far it then reaches, at most `step`."""
        while self.end < step and not self._exhausted:
            if self._chunks is None:
                self._chunks = iter(self._stream)
            before = self._stream_state()
            try:
                chunk = Chunk(*checked_chunk(next(self._chunks), self.time_dim))
            except StopIteration:
                self._exhausted = True
                _check_not_empty(self.end)
                break
            if _tree.leaves(chunk.inputs)[0].shape[self.time_dim] == 0:
                continue  # an empty tail is no step
            self._check(chunk)
            chunk = chunk._replace(inputs=self._like(chunk.inputs, 0), targets=self._like(chunk.targets, 1))
            piece = _Piece(chunk, self.end, self.time_dim)
            if self.end and (piece.is_start is None or not piece.is_start[0].all()):
                _check_in_order(self._stream)
            piece.before = before
            self._pieces.append(piece)
            self._any_masked |= piece.masked
            self.end = piece.stop
        return int(min(step, self.end))

    def _stream_state(self) -> Any:
        """A copy of the stream's own state, None for a stream without one."""
        return copy.deepcopy(self._stream.state_dict()) if hasattr(self._stream, "state_dict") else None

    def position(self, step: int) -> dict[str, Any]:
        """Where to read from to have `step` again: the start of its chunk, and the stream's state before that chunk."""
        piece = next((piece for piece in self._pieces if piece.stop > step), None)
        if piece is None:
            return {"start": self.end, "ended": self._exhausted, "stream": self._stream_state()}
        return {"start": piece.start, "ended": False, "stream": piece.before}

    def go_to(self, position: dict[str, Any], step: int) -> None:
        """Before anything is read, go to a position; a stream without a state is read again from its start."""
        if position["stream"] is not None:
            if not hasattr(self._stream, "load_state_dict"):
                raise ValueError(
                    f"the saved stream had a state, and a {type(self._stream).__name__} has no load_state_dict: pass "
                    f"the same kind of stream."
                )
            self._stream.load_state_dict(copy.deepcopy(position["stream"]))
            self.end, self._exhausted = position["start"], position["ended"]
        if self.upto(step) < step:
            raise ValueError(f"the stream ends at step {self.end}, but the saved run continues from step {step}.")
        self.drop(step)

    def _like(self, tree: Tree, which: int) -> Tree:
        """Inputs (0) or targets (1) in the structure of those of the first chunk."""
        name, first = ("inputs", "targets")[which], self._forms[which] is _UNSEEN
        if first:
            self._forms[which] = _tree.structure_of(tree), [leaf.shape for leaf in _tree.leaves(tree)]
        structure, shapes = self._forms[which]
        tree = tree if first else _like_first(tree, structure, name)
        _rows_of_first(tree, shapes, 1 - self.time_dim, name)
        return _tree.ordinary(tree)

    def _between(self, a: int, b: int) -> Iterator[tuple[_Piece, int, int]]:
        for i in range(bisect_right(self._pieces, a, key=lambda piece: piece.stop), len(self._pieces)):
            piece = self._pieces[i]
            if piece.start >= b:
                return
            yield piece, max(a, piece.start), min(b, piece.stop)

    def read(self, a: int, b: int) -> Data:
        """Steps [a, b): views into one chunk, copies where several are joined."""
        parts = list(self._between(a, b))
        pieces = [piece for piece, _, _ in parts]
        columns = [piece.steps(start, stop, self.time_dim) for piece, start, stop in parts]
        values = columns[0] if len(parts) == 1 else [_cat(c, self.time_dim) for c in zip(*columns, strict=True)]
        tracked: dict[int, Tensor] = {}
        if torch.is_grad_enabled() and any(piece.asking for piece in pieces):
            tracked = {i: values[i].detach().requires_grad_() for piece in pieces for i in piece.asking}
            values = [tracked.get(i, value) for i, value in enumerate(values)]
        inputs, targets = pieces[0].structure
        n = pieces[0].inputs
        return Data(_tree.unflatten(values[:n], inputs), _tree.unflatten(values[n:], targets), *_rows(parts), tracked)

    def rows(self, a: int, b: int) -> tuple[Tensor | None, Tensor | None]:
        """`is_start` and `mask` of the steps [a, b), time first."""
        return _rows(list(self._between(a, b)))

    def masked(self, a: int, b: int) -> bool:
        """Whether a mask leaves out any loss of the chunks that hold the steps [a, b)."""
        return self._any_masked and any(piece.masked for piece, _, _ in self._between(a, b))

    def collect(self, a: int, b: int, data: Data) -> None:
        """Add what the leaves of `read(a, b)` have collected to the cotangents of their chunks."""
        for i, leaf in data.tracked.items():
            if leaf.grad is None:
                continue
            for piece, start, stop in self._between(a, b):
                if i in piece.asking:
                    total = piece.cotangents.setdefault(i, torch.zeros_like(piece.values[i].detach()))
                    share = leaf.grad.narrow(self.time_dim, start - a, stop - start)
                    total.narrow(self.time_dim, start - piece.start, stop - start).add_(share)

    def take_cotangents(self) -> list[tuple[Tensor, Tensor]]:
        """(leaf of a chunk, its cotangent summed since the last call), for all leaves; then start again from zero."""
        pairs = [(piece.values[i], total) for piece in self._pieces for i, total in piece.cotangents.items()]
        for piece in self._pieces:
            piece.cotangents = {}
        return pairs

    def at_end(self, step: float) -> bool:
        """Whether the stream is known to end at `step`."""
        return self._exhausted and self.end == step

    def apart(self) -> "Timeline":
        """A second timeline on the chunks read so far, which keeps them when this one forgets them."""
        return copy.copy(self)

    @property
    def first(self) -> int:
        """The first step of the chunks that are held."""
        return self._pieces[0].start

    @property
    def asking(self) -> bool:
        """Whether a leaf of the chunks that are held requires a gradient."""
        return any(piece.asking for piece in self._pieces)

    def resets(self, a: int, b: int) -> list[int]:
        """The steps in [a, b) at which some row is reset."""
        if not any(piece.resets for piece in self._pieces):
            return []
        return [
            step
            for piece, start, stop in self._between(a, b)
            for step in piece.resets[bisect_left(piece.resets, start) : bisect_left(piece.resets, stop)]
        ]

    def rows_at(self, step: int) -> int:
        """How many batch rows there are, 1 for inputs without a batch axis."""
        return next((x.shape[1 - self.time_dim] for x in _tree.leaves(self.inputs_at(step)) if x.dim() > 1), 1)

    def inputs_at(self, step: int) -> Tree:
        """All inputs of the chunk that holds `step`, to look at their shapes."""
        piece = next(self._between(step, step + 1))[0]
        return _tree.unflatten(piece.values[: piece.inputs], piece.structure[0])

    def drop(self, before: int) -> None:
        """Forget the chunks that lie wholly before step `before`, except those whose cotangents aren't taken yet."""
        self._pieces = [piece for piece in self._pieces if piece.stop > before or piece.cotangents]


def check_no_graph_in(chunk: Any) -> None:
    """The same for a chunk's inputs and targets."""
    check_no_graph(chunk.inputs, "inputs")
    check_no_graph(chunk.targets, "targets")


def check_stream(value: Any) -> Any:
    """Raise unless it is an iterable of chunks, and not a chunk itself."""
    if isinstance(value, Tensor) or (isinstance(value, tuple) and value and isinstance(value[0], Tensor)):
        raise TypeError("stream must be an iterable of chunks; for one chunk write [(inputs, targets)].")
    if not isinstance(value, Iterable):
        raise TypeError(f"stream must be an iterable of chunks (inputs, targets), not {type(value).__name__}.")
    return value


def _check_in_order(stream: Any) -> None:
    """Raise if it is a loader whose sampler shuffles; called when a state is carried from one batch to the next."""
    batches = getattr(stream, "batch_sampler", None)
    for sampler in (getattr(stream, "sampler", None), batches, getattr(batches, "sampler", None)):
        shuffles = isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler)
        if shuffles or (isinstance(sampler, DistributedSampler) and sampler.shuffle):
            raise ValueError(
                f"stream shuffles ({type(sampler).__name__}), and the state is carried from batch to batch: pass "
                f"shuffle=False or a sampler that keeps the order, or mark in is_start that each batch begins anew."
            )


def _check_not_empty(steps: int) -> None:
    """Raise unless there is at least one step."""
    if steps == 0:
        raise ValueError("the stream is empty: it gave no step. Was its iterator used up by an earlier loop?")


def checked_chunk(value: Any, time_dim: int) -> tuple[Any, Any, Any, Any]:
    """(inputs, targets, is_start, mask), tensors that agree on their steps, from a Chunk, a tuple or a list."""
    if not isinstance(value, tuple | list) or not 2 <= len(value) <= 4:
        raise TypeError(
            f"a chunk must be bptt.Chunk(inputs, targets), or a tuple of 2 to 4 entries, not {type(value).__name__}."
        )
    inputs, targets, is_start, mask = map(_tree.from_numpy, (*value, None, None)[:4])
    if isinstance(inputs, PackedSequence):
        raise TypeError("inputs is a PackedSequence: pass the padded tensor, and mask= for the steps that count.")
    steps = None
    for tree, at in ((inputs, "inputs"), (targets, "targets")):
        check_dense(tree, at)
        for path, leaf in _tree.named_leaves(tree, at):
            if leaf.dim() <= time_dim:
                raise ValueError(f"{path} of shape {shape(leaf)} has no time axis {time_dim}.")
            if leaf.dim() > 2 and leaf.shape[1 - time_dim] == 0:
                raise ValueError(f"{path} of shape {shape(leaf)} has no rows: leave chunks with an empty batch out.")
            steps = leaf.shape[time_dim] if steps is None else steps
            if leaf.shape[time_dim] != steps:
                raise ValueError(
                    f"{path} has {leaf.shape[time_dim]} steps and inputs {steps} (axis {time_dim}): every step needs "
                    f"its own."
                )
    if steps is None or not _tree.leaves(inputs):
        raise ValueError(
            "inputs holds no tensor, so nothing says how many steps the chunk has: pass at least one (T, ...)."
        )
    is_start = None if is_start is None else _rows_of(is_start, "is_start", steps, time_dim)
    mask = None if mask is None else _rows_of(mask, "mask", steps, time_dim)
    return inputs, targets, is_start, mask


def _rows_of(rows: Any, name: str, steps: int, time_dim: int) -> Tensor:
    """`is_start` or `mask` as (T, B) or (T,): bool if it holds only 0 and 1, else weights (for a mask only)."""
    if not isinstance(rows, Tensor) or rows.is_complex():
        raise TypeError(
            f"{name} must be a tensor (T, B) or (T,); {getattr(rows, 'dtype', type(rows).__name__)} was passed."
        )
    given, rows = rows, rows.squeeze(2) if rows.dim() == 3 and rows.shape[2] == 1 else rows
    if rows.dim() not in (1, 2) or rows.shape[min(time_dim, rows.dim() - 1)] != steps:
        raise ValueError(
            f"{name} of shape {shape(given)} doesn't fit {steps} steps: pass (T, B) or (T,), with time as in inputs."
        )
    if rows.dtype == torch.bool or rows.is_meta:
        return rows.bool()
    rows = rows.detach()
    if ((rows == 0) | (rows == 1)).all():
        return rows.bool()
    if name == "is_start" or not rows.is_floating_point():
        raise ValueError(f"{name} of {rows.dtype} holds {_odd(rows)}: pass bool, or the numbers 0 and 1.")
    if not (rows >= 0).all() or rows.isinf().any():
        raise ValueError(f"mask holds {_odd(rows)}: weights are finite numbers of at least 0.")
    return rows


def _odd(rows: Tensor) -> float:
    """The smallest, or the first strange, entry, for an error message."""
    strange = rows[(rows != rows) | (rows < 0) | rows.isinf()] if rows.is_floating_point() else rows[:0]
    return (strange if strange.numel() else rows[(rows != 0) & (rows != 1)])[0].item()
