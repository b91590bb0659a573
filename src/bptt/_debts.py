"""The cotangents that windows owe to graphs behind the user's inputs and states: summed, and passed on once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bptt import _tree
from bptt._segment import Span
from bptt._stream import Timeline
from bptt._tree import Tree


class Debts:
    """Cotangents owed to the leaves of inputs, states and initial states, or to the graphs that these carry."""

    def __init__(self, state: Tree, params: list[Tensor] | None, time: Timeline) -> None:
        """state: what the run starts from. params: as in `unroll`."""
        self._state, self._params, self._time = state, params, time
        self._owed: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, span: Span, carried: Tree, cotangent: Sequence[Tensor | None]) -> None:
        """Add what a window owes, from the state `carried`, to the user's states, at the start and at resets."""
        initial = span.initial
        given: list[tuple[Tensor, Tensor | None]] = []
        if span.window.start == 0:
            value = self._state if carried is not None else initial.value if initial else None
            given += zip(_tree.leaves(value), cotangent, strict=True)
        if initial is not None:
            given += zip(_tree.leaves(initial.value), _tree.cotangents(initial.leaves), strict=True)
        for value, c in given:
            if c is not None and value.requires_grad:
                before = self._owed.get(id(value))
                self._owed[id(value)] = (value, c if before is None else before[1] + c)

    def pay(self) -> None:
        """Pass all cotangents on."""
        pairs = [pair for pair in (*self._owed.values(), *self._time.take_cotangents()) if pair[0].requires_grad]
        self._owed = {}
        if pairs:
            torch.autograd.backward([value for value, _ in pairs], [c for _, c in pairs], inputs=self._params)
