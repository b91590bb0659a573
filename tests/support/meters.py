"""Bytes that autograd holds, measured from outside the engine."""

import pytest
import torch

from support import oracle
from support.cases import make, square
from support.runs import unroll

HOOKS = torch.autograd.graph.saved_tensors_hooks


class Saved:
    """A tensor that autograd holds, counted as long as it lives. Detached: an output would hold its own graph."""

    def __init__(self, meter, tensor):
        self.meter, self.tensor, self.storage = meter, tensor.detach(), tensor.untyped_storage()
        meter.change(self.storage, 1)

    def __del__(self):
        self.meter.change(self.storage, -1)


class Meter:
    """Bytes that autograd holds, each storage once, whoever's hooks are the innermost; probes included.

    What the budget leaves out is left out: parameters, and the stream's own inputs and targets.
    """

    def __init__(self, case):
        self.live, self.now, self.peak, self.model = {}, 0, 0, case.model
        self.apart = {t.untyped_storage().data_ptr() for t in (case.xs, case.ys, *case.parameters())}

    def change(self, storage, by: int) -> None:
        key = storage.data_ptr()
        if key in self.apart:
            return
        count = self.live.get(key, 0) + by
        self.live[key] = count
        if (count, by) == (1, 1) or count == 0:
            self.now += by * storage.nbytes()
            self.peak = max(self.peak, self.now)

    def __call__(self, inputs, state):
        return self.model(inputs, state)

    def watch(self):
        """Our hooks around everything, and around those that anyone else enters inside."""
        meter = self

        class Composed(HOOKS):
            def __init__(self, pack, unpack):
                super().__init__(lambda t: (Saved(meter, t), pack(t)), lambda both: unpack(both[1]))

        return pytest.MonkeyPatch.context(), Composed, HOOKS(lambda t: Saved(meter, t), lambda saved: saved.tensor)


def metered(name: str, length: int, strategy, memory, hidden: int = 13, cuts=(), loss=square):
    case = make(name, length, B=4, size=3, hidden=hidden)
    meter = Meter(case)
    oracle.gradients(case.parameters())
    context, composed, around = meter.watch()
    with context as patch, around:
        patch.setattr(torch.autograd.graph, "saved_tensors_hooks", composed)
        run = unroll(case, strategy, model=meter, state=case.zeros(), memory=memory, cuts=cuts, loss=loss)
        updates = list(run)
    return case, meter, updates, oracle.gradients(case.parameters())
