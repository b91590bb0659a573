"""Memory budgets: what a user may write for `memory=`, and the bytes a window holds for its backward pass."""

import math
import re
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bptt import arguments, state
from bptt.replay import Noise, buffers_of
from bptt.segment import Segment, Tape
from bptt.state import Tree

_UNITS = {"": 1, "b": 1} | {
    prefix.lower() + end: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for end, base in (("b", 1000), ("ib", 1024))
}

_NODES = 1000
"""Nodes of a graph that are looked at from Python: each gets an object, and to free a long chain of these recurses."""


@dataclass(frozen=True)
class Checkpoints:
    """Store `slots` states, the one at the window's start included, and tape `segment` steps at a time.

    The gradient is that of full storage, to rounding; the states in between are computed again by the optimal
    binomial schedule (`bptt.schedules.checkpoint`): t(l, slots) · segment extra steps for l = ⌈steps / segment⌉.

    slots: int >= 1. segment: steps >= 1. Raises ValueError for anything else.

    >>> import bptt
    >>> bptt.Checkpoints(slots=10, segment=100)
    Checkpoints(slots=10, segment=100)

    Source: Griewank & Walther 2000, ACM TOMS 26(1); Gruslys et al. 2016, https://arxiv.org/abs/1606.03401
    """

    slots: int
    segment: int

    def __post_init__(self) -> None:
        for name in ("slots", "segment"):
            arguments.count(getattr(self, name), f"{self!r}: {name}")


Memory = str | int | Checkpoints | None
"""`memory=`: None stores everything; bytes as "512MiB" or an int; or `Checkpoints`."""


def parse(memory: Memory) -> Checkpoints | int | None:
    """`memory=` as Checkpoints, a number of bytes, or None; ValueError for anything else.

    >>> parse("1.5KiB")
    1536
    """
    if memory is None or isinstance(memory, Checkpoints):
        return memory
    number, unit = memory, ""
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", memory)
        number, unit = (float(match[1]), match[2].lower()) if match else (0, "")
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or unit not in _UNITS
        or not number * _UNITS[unit] >= 1
    ):
        raise ValueError(
            f'memory={memory!r}: give a size such as "512MiB" or "2GB", a positive number of bytes, '
            f"bptt.Checkpoints(slots, segment), or None to store everything."
        )
    size = number * _UNITS[unit]
    return None if size >= 2**63 else int(size)  # infinity and the like: everything fits


class Meter:
    """Bytes held for a backward pass: storages that autograd saved, each once, and stored states and cotangents.

    Parameters, buffers, the stream's own chunks and the gradients don't count. What is saved is seen as it is saved,
    since a graph of many steps can't be walked from Python: see `_NODES`.
    """

    def __init__(self, modules: Iterable[Any]) -> None:
        self._modules = tuple(modules)
        self._apart: list[Tensor] = [
            tensor
            for module in self._modules
            if isinstance(module, nn.Module)
            for tensor in (*module.parameters(), *module.buffers())
        ]
        self._watches = True
        self._proven = False
        self._saved: defaultdict[Any, _Line] = defaultdict(_Line)

    def tape(self, segment: Segment, begin: Tree, key: Any = None) -> tuple[Tape, float]:
        """A tape from the state `begin`, and the bytes autograd saved for it beside the states it begins and ends in.

        key: equal for tapes that differ in their length only; what is known is not measured again. None: always.
        The bytes are NaN where the recurrence or the loss calls what refuses hooks on saved tensors.
        """
        line, steps = None if key is None else self._saved[key], segment.stop - segment.start
        known = None if line is None else line.at(steps)
        if known is not None:
            return segment.tape(state.tracked(begin)), known
        watched = self._watched(segment, begin) if self._watches else None
        if watched is None:
            return segment.tape(state.tracked(begin)), math.nan
        tape, seen = watched
        counted = (*state.leaves(tape.begin), *state.leaves(tape.after), *state.leaves(segment.kept))
        stream = (
            *state.leaves(tape.data.inputs),
            *state.leaves(tape.data.targets),
        )  # joined from several chunks or not
        apart = seen.parameters(segment).union(*map(_storages, (*self._apart, *counted, *stream)))
        saved = sum(size for storage, size in seen.storages.items() if storage not in apart)
        if line is not None:
            line.add(steps, saved)
        return tape, saved

    def held(self, segment: Segment, begin: Tree, size: int, key: Any = None) -> int:
        """The bytes of `tape`, to keep within a budget of `size` bytes; ValueError where they can't be seen."""
        saved = self.tape(segment, begin, key)[1]
        if math.isnan(saved):
            raise ValueError(
                f"memory={size}: a budget in bytes needs to see what autograd saves, which torch.func's transforms in "
                f"the model or the loss forbid. Use memory=bptt.Checkpoints(slots, segment) or None."
            )
        return int(saved)

    def _watched(self, segment: Segment, begin: Tree) -> "tuple[Tape, Seen] | None":
        """A tape and what it saved; None where that is refused: then all is as before, and nothing watched again."""
        seen, before = Seen(), dict(vars(segment))
        put_back = None if self._proven else _remembered(self._modules, begin, segment)
        try:
            with seen.watching():
                tape = segment.tape(state.tracked(begin))
        except (RuntimeError, ValueError) as error:
            if not _refuses_hooks(error):
                raise
        else:
            self._proven = True
            return tape, seen
        self._watches = False
        vars(segment).update(before)
        if put_back is not None:
            put_back()
        return None


class _Line:
    """Bytes by length: as measured, and between two lengths where a third has shown that they lie on a line."""

    def __init__(self) -> None:
        self._points: dict[int, int] = {}
        self._straight = False

    def at(self, steps: int) -> int | None:
        if steps in self._points or not self._straight:
            return self._points.get(steps)
        return self._between(steps) if min(self._points) < steps < max(self._points) else None

    def add(self, steps: int, saved: int) -> None:
        self._points[steps] = saved
        self._straight = len(self._points) > 2 and all(self._between(n) == self._points[n] for n in self._points)

    def _between(self, steps: int) -> int:
        a, b = min(self._points), max(self._points)
        return self._points[a] + (self._points[b] - self._points[a]) * (steps - a) // (b - a)


class Seen:
    """What autograd saved in a block: `storages` by identity, with their bytes, and the leaves among them."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.leaves: dict[int, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note every storage that is saved in the block, in forward alone."""

        autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
        outer = autograd._top_saved_tensors_default_hooks(False)  # hooks don't stack by themselves
        pack_outer, unpack_outer = outer or (None, _unpacked)
        storages = self.storages

        def pack(tensor: Tensor) -> Any:
            try:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in storages:
                    storages[key] = storage.nbytes()
                    base = tensor._base  # a layer's weight is saved transposed
                    root = tensor if base is None else base
                    if root.is_leaf and root.requires_grad:
                        self.leaves[key] = root
            except NotImplementedError:  # a sparse tensor is made of dense ones
                storages.update(_storages(tensor))
            # never the tensor itself, which would tie a cycle through its own graph
            return (tensor.detach(), tensor._version) if pack_outer is None else pack_outer(tensor)

        if compiler := sys.modules.get("torch._dynamo.decorators"):  # else a compiled model has the hook compiled too
            compiler.skip(pack)
            for function in (_storages, _unpacked):
                compiler.skip(function)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack_outer):
            yield

    def parameters(self, segment: Segment) -> set[int]:
        """The storages of the leaves that aren't the engine's own: parameters, of closures too."""
        initial = segment.initial
        ours = {id(leaf) for leaf in state.leaves(initial.leaves if initial else None)}
        return {storage for storage, leaf in self.leaves.items() if id(leaf) not in ours}


def _unpacked(packed: tuple[Tensor, int]) -> Tensor:
    """The tensor that was saved; the check of its version that autograd makes where there are no hooks."""
    tensor, version = packed
    if tensor._version != version:
        raise RuntimeError(
            f"one of the variables needed for gradient computation has been modified by an inplace operation: a tensor "
            f"of shape {tuple(tensor.shape)} is at version {tensor._version}; expected version {version} instead."
        )
    return tensor


def _storages(tensor: Tensor) -> dict[int, int]:
    """Identity and bytes of a tensor's storage, or of those that a sparse one is made of."""
    if tensor.layout is torch.strided:
        parts = [tensor]
    elif tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:  # another that has no storage to look at
        parts = []
    return {storage._cdata: storage.nbytes() for storage in (part.untyped_storage() for part in parts)}


def _refuses_hooks(error: BaseException) -> bool:
    """Whether this is what torch.func.grad and its like say where hooks on saved tensors are set."""
    said = [str(each) for each in (error, error.__cause__) if isinstance(each, RuntimeError)]
    return any("saved tensor" in text and "hooks" in text for text in said)


def _remembered(modules: Iterable[Any], begin: Tree, segment: Segment) -> Callable[[], None]:
    """What puts noise and buffers back to what they are now, after a first attempt that failed."""
    noise = Noise.now([*state.leaves(begin), *state.leaves(segment.problem.time.inputs_at(segment.start))])
    own = [(*buffer, buffer[2]._version, buffer[2].clone()) for module in modules for buffer in buffers_of(module)]

    def put_back() -> None:
        noise.install()
        for module, name, value, version, copy in own:
            module._buffers[name] = value
            if value._version != version:
                with torch.no_grad():
                    value.copy_(copy)

    return put_back


def leaves_of(segment: Segment, begin: Tree) -> tuple[list[Tensor], bool]:
    """Leaves that a segment's graph reaches, of closures too, but for the engine's own; whether these are all.

    Of a graph of many nodes only the next ones are looked at; the others among its leaves are those that it saves.
    """
    seen = Seen()
    try:
        with seen.watching():
            tape = segment.tape(state.tracked(begin))
    except (RuntimeError, ValueError):  # hooks are refused, or something that comes again
        tape = segment.tape(state.tracked(begin))
    ours = {id(leaf) for leaf in (*state.leaves(tape.begin), *tape.data.tracked.values())}
    if segment.initial is not None:
        ours |= {id(leaf) for leaf in state.leaves(segment.initial.leaves)}
    found = {id(leaf): leaf for leaf in seen.leaves.values()}
    roots = [tape.losses, *state.leaves(tape.end)]
    nodes = deque(root.grad_fn for root in roots if root is not None and root.grad_fn is not None)
    known = set(nodes)
    while nodes and len(known) < _NODES:
        node = nodes.popleft()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        following = [n for n, _ in node.next_functions if n is not None and n not in known]
        known.update(following)
        nodes += dict.fromkeys(following)
    return [leaf for key, leaf in found.items() if key not in ours], not nodes
