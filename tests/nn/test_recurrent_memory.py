"""What the backward pass keeps: the formula, and no more under a memory budget."""

import gc

import pytest
import torch

import bptt
from support.cases import square
from support.layers import CELLS, RUNS, kernel, state_of

T, B, SIZE, H = 16, 8, 7, 24
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
SAVED = {"RNN": 1, "GRU": 5, "LSTM": 6}  # h; r, z, n, W_n h + b_n and h; i, f, g, o, c and h


def saved_bytes(call, apart=()):
    """Bytes of all storages that the graph of `call()` holds, each once, those of `apart` not counted."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = call()
    for tensor in apart:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    assert result[0].requires_grad
    return sum(storages.values())


@pytest.mark.parametrize(("name", "dtype"), RUNS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_formula(cell, dtype, name):
    """T B H times 1 (RNN), 5 (GRU), 6 (LSTM), beside what was given: inputs, initial states, weights."""
    layer = getattr(bptt.nn, cell)(SIZE, H, dtype=dtype)
    x, hx = torch.randn(T, B, SIZE, dtype=dtype), state_of(cell, 1, B, H, dtype=dtype)
    given = [x, *(hx if cell == "LSTM" else [hx]), *layer.parameters()]
    width = torch.finfo(dtype).bits // 8
    with kernel(name):
        assert saved_bytes(lambda: layer(x, hx), given) == T * B * H * SAVED[cell] * width
        assert saved_bytes(lambda: layer(x), given) == T * B * H * SAVED[cell] * width
        total = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in given}.values())
        assert saved_bytes(lambda: layer(x, hx)) == T * B * H * SAVED[cell] * width + total


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.thin
def test_nothing_stays(cell):
    """After a step, and without a graph, only the parameters and their gradients are left."""
    layer = getattr(bptt.nn, cell)(SIZE, H)
    x = torch.randn(T, B, SIZE)

    def step():
        layer(x)[0].sum().backward()
        with torch.no_grad():
            layer(x)
        layer(x)  # its graph is dropped unused

    step()
    gc.collect()
    before = sum(1 for o in gc.get_objects() if issubclass(type(o), torch.Tensor))
    for _ in range(3):
        step()
    gc.collect()
    assert sum(1 for o in gc.get_objects() if issubclass(type(o), torch.Tensor)) == before


@pytest.mark.parametrize("cell", CELLS)
def test_under_checkpoints_the_gates_of_one_segment(cell):
    """A long sequence in segments of 16 steps: never more saved at once than one segment's, and a state a segment."""
    if cell == "LSTM" and bptt.nn.kernels.chosen is None:
        pytest.skip("without kernels an LSTM is torch.nn's own, which saves more")
    segment, length = 16, 512
    layer = getattr(bptt.nn, cell)(SIZE, H)
    xs, ys = torch.randn(length, B, SIZE), torch.randn(length, B, H)
    live, peak = {}, [0]

    class Held:
        """Counts a saved tensor as long as the graph holds it."""

        def __init__(self, tensor):
            self.tensor = tensor.detach()
            self.key = self.tensor.untyped_storage().data_ptr()
            live[self.key] = (live.get(self.key, (0, 0))[0] + 1, self.tensor.untyped_storage().nbytes())
            peak[0] = max(peak[0], sum(n for _, n in live.values()))

        def __del__(self):
            count, n = live[self.key]
            live[self.key] = (count - 1, n)
            if count == 1:
                del live[self.key]

    class Recurrence(torch.nn.Module):
        """The layer under hooks of its own, innermost."""

        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, inputs, state):
            with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
                return self.layer(inputs, state)

    zeros = torch.zeros(1, B, H)
    state = (zeros, zeros.clone()) if cell == "LSTM" else zeros
    bptt.backward(Recurrence(), square, (xs, ys), state, memory=bptt.Checkpoints(slots=4, segment=segment))
    assert not live
    given = sum(p.nbytes for p in layer.parameters()) + xs.nbytes
    one = segment * B * H * 4 * SAVED[cell]
    states = 2 * B * H * 4  # the two that a segment starts from
    assert one <= peak[0] <= one + given + states
    assert peak[0] < length * B * H * 4 * SAVED[cell] / 4 + given
