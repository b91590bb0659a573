"""Memory budgets: what a user may write for `memory=`, and the bytes a window holds for its backward pass."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bptt import arguments, state
from bptt.segment import Segment, Tape
from bptt.state import Tree

_UNITS = {"": 1, "b": 1} | {
    prefix.lower() + end: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for end, base in (("b", 1000), ("ib", 1024))
}


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
    return None if size == math.inf else int(size)


class Meter:
    """Bytes held for a backward pass: storages that autograd saved, each once, and stored states and cotangents.

    Parameters, buffers, the stream's own chunks and the gradients don't count.
    """

    def __init__(self, modules: Iterable[Any]) -> None:
        self._apart: list[Tensor] = [
            tensor
            for module in modules
            if isinstance(module, nn.Module)
            for tensor in (*module.parameters(), *module.buffers())
        ]
        self._closures_known = False
        self._saved: defaultdict[Any, _Line] = defaultdict(_Line)

    def leaves(self, params: list[Tensor] | None) -> list[Tensor]:
        """`params`, or what may get a gradient: leaves of the modules, and of closures once a tape was made."""
        if params is not None:
            return params
        return [tensor for tensor in self._apart if tensor.requires_grad and tensor.is_leaf]

    def tape(self, segment: Segment, begin: Tree, key: Any = None) -> tuple[Tape, int]:
        """A tape from the state `begin`, and the bytes autograd saved for it beside the states it begins and ends in.

        key: equal for tapes that differ in their length only; what is known is not measured again. None: always.
        """
        line, steps = None if key is None else self._saved[key], segment.stop - segment.start
        known = None if line is None else line.at(steps)
        if known is not None:
            return segment.tape(state.tracked(begin)), known
        storages: dict[int, int] = {}
        with _recorded(storages):
            tape = segment.tape(state.tracked(begin))
        if not self._closures_known and tape.losses is not None:
            self._apart += leaves_of(tape)
            self._closures_known = True
        counted = (*state.leaves(tape.begin), *state.leaves(tape.after), *state.leaves(segment.kept))
        stream = (
            *state.leaves(tape.data.inputs),
            *state.leaves(tape.data.targets),
        )  # joined from several chunks or not
        apart = {leaf.untyped_storage()._cdata for leaf in (*self._apart, *counted, *stream)}
        saved = sum(size for storage, size in storages.items() if storage not in apart)
        if line is not None:
            line.add(steps, saved)
        return tape, saved


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


@contextmanager
def _recorded(storages: dict[int, int]) -> Iterator[None]:
    """Note identity and size of every storage that autograd saves in the block."""

    autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    outer = autograd._top_saved_tensors_default_hooks(False)  # hooks don't stack by themselves
    pack_outer, unpack_outer = outer or (torch.Tensor.detach, lambda tensor: tensor)

    def pack(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        return pack_outer(tensor)  # never the tensor itself, which would tie a cycle through its own graph

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack_outer):
        yield


def leaves_of(tape: Tape) -> list[Tensor]:
    """The leaves that the graph reaches and that are not the engine's own: parameters, of closures too."""
    ours = {id(leaf) for leaf in (*state.leaves(tape.begin), *tape.data.tracked.values())}
    if tape.segment.initial is not None:
        ours |= {id(leaf) for leaf in state.leaves(tape.segment.initial.leaves)}
    found, seen = [], set()
    roots = [tape.losses, *state.leaves(tape.end)]
    nodes = [root.grad_fn for root in roots if root is not None and root.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in ours:
            found.append(variable)
        nodes += [following for following, _ in node.next_functions if following is not None]
    return found
