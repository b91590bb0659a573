"""Under the engine ours equal torch.nn's with the same weights, in one call a window wherever the keywords serve."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import chunks, some_resets, square
from support.layers import CELLS, F64, KERNELS, assert_equal, kernel, pair, state_of
from support.oracle import leaves

T, B = 24, 3
STRATEGIES = {
    "full": bptt.FullBPTT(),
    "truncated": bptt.TruncatedBPTT(k1=6),
    "k1 < k2": bptt.TruncatedBPTT(k1=4, k2=10),
    "artbp": bptt.ARTBP(law=bptt.ConstantLaw(mean_length=8)),
    "artbp by row": bptt.ARTBP(law=bptt.ConstantLaw(mean_length=8), per_row=True),
    "artbp every": bptt.ARTBP(law=bptt.PolynomialLaw(alpha=3, mean_length=8), every=3),
}
MEMORY = {"all": None, "slots": bptt.Checkpoints(slots=2, segment=5), "bytes": "64KiB"}


def ran(layer, strategy, resets=None, memory=None, state=None, dtype=F64, cuts=(7, 8), **more):
    """(losses, states and gradients; calls; updates) of a run over the same data."""
    g = torch.Generator().manual_seed(1)
    xs = torch.randn(T, B, 3, generator=g, dtype=F64).to(dtype)
    ys = torch.randn(T, B, 5, generator=g, dtype=F64).to(dtype)
    calls = []
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    layer.zero_grad()
    stream = chunks(xs, ys, resets, cuts=cuts) if resets is not None else chunks(xs, ys, cuts=cuts)
    more = {"strategy": strategy, "memory": memory, "generator": torch.Generator().manual_seed(4)} | more
    updates = list(bptt.unroll(layer, square, stream, state, reduction="sum", **more))
    hook.remove()
    values = [v.detach() for u in updates for v in (u.loss, *leaves(u.state))]
    return [*values, *oracle.gradients(list(layer.parameters()))], len(calls), updates


def same(cell, strategy, **keywords):
    """Ours against torch.nn's; the calls of each, and the updates."""
    dtype = keywords.get("dtype", F64)
    theirs, ours = pair(cell, 3, 5, 2, dtype=dtype)
    expected, many, _ = ran(theirs, strategy, **keywords)
    got, few, updates = ran(ours, strategy, **keywords)
    assert_equal(got, expected, 1e-12 if dtype == F64 else 2e-5)
    return many, few, updates


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.thin
def test_against_torchs_layers(cell, strategy, resets, memory):
    rows = some_resets(T, B) if resets else None
    same(cell, STRATEGIES[strategy], resets=rows, memory=MEMORY[memory])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.thin
def test_every_kernel(strategy, name):
    with kernel(name):
        for cell in CELLS:
            same(cell, STRATEGIES[strategy], resets=some_resets(T, B), dtype=torch.float32, memory=MEMORY["slots"])


@pytest.mark.parametrize("cell", CELLS)
def test_one_call_a_window(cell):
    """Where the engine would call torch.nn's layer in pieces, at resets and at weights."""
    resets = some_resets(T, B)
    for name in ("full", "truncated", "artbp", "artbp by row"):
        many, few, updates = same(cell, STRATEGIES[name], resets=resets, cuts=())
        assert few == len(updates), name
        assert many > 2 * few or name == "truncated"
    many, few, updates = same(cell, STRATEGIES["artbp"], cuts=())
    assert few == len(updates)
    assert many == T  # a weight after every step


@pytest.mark.parametrize("cell", CELLS)
def test_a_given_initial_state_is_no_zeros(cell):
    """Then resets are the engine's, and right all the same."""
    initial = state_of(cell, 2, B, 5, dtype=F64)
    many, few, _ = same(cell, STRATEGIES["full"], resets=some_resets(T, B), initial_state=lambda: initial, cuts=())
    assert few == many > 2


@pytest.mark.parametrize("cell", CELLS)
def test_batch_first(cell):
    """`time_dim=1`: resets and weights are the engine's to turn."""
    theirs, ours = pair(cell, 3, 5, batch_first=True, dtype=F64)
    xs, ys = torch.randn(B, T, 3, dtype=F64), torch.randn(B, T, 5, dtype=F64)
    for strategy in ("full", "artbp", "artbp by row", "k1 < k2"):
        for rows in (None, some_resets(T, B).T):
            results = []
            for layer in (theirs, ours):
                generator = torch.Generator().manual_seed(4)
                chunk = bptt.Chunk(xs, ys, rows)
                more = {"strategy": STRATEGIES[strategy], "time_dim": 1, "generator": generator}
                updates = list(bptt.unroll(layer, square, [chunk], **more))
                values = [v.detach() for u in updates for v in (u.loss, *leaves(u.state))]
                results.append([*values, *oracle.gradients(list(layer.parameters()))])
            assert_equal(results[1], results[0], 1e-12)


def test_a_model_around_the_layer():
    """Whose own call passes the keywords on."""

    class Model(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.out = layer, nn.Linear(5, 5, dtype=F64)

        def forward(self, inputs, state=None, is_start=None, cotangent_weight=None):
            native = {"is_start": is_start, "cotangent_weight": cotangent_weight}
            y, state = self.layer(inputs, state, **native)
            return self.out(y), state

    torch.manual_seed(2)
    layers = pair("LSTM", 3, 5, dtype=F64)
    model = Model(layers[1])
    plain = bptt.scan(lambda x, s: (lambda y, s: (model.out(y)[0], s))(*layers[0](x[None], s)))
    xs, ys, zeros = torch.randn(T, B, 3, dtype=F64), torch.randn(T, B, 5, dtype=F64), torch.zeros(1, B, 5, dtype=F64)
    found = []
    for recurrence, layer in ((plain, layers[0]), (model, layers[1])):
        generator = torch.Generator().manual_seed(4)
        more = {"strategy": STRATEGIES["artbp"], "generator": generator, "state_batch_dim": 1}
        list(bptt.unroll(recurrence, square, [(xs, ys)], (zeros, zeros), reduction="sum", **more))
        found.append(oracle.gradients([*layer.parameters(), *model.out.parameters()]))
    assert_equal(found[1], found[0], 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_evaluate_and_backward(cell):
    theirs, ours = pair(cell, 3, 5, 2, dtype=F64)
    xs, ys, rows = torch.randn(T, B, 3, dtype=F64), torch.randn(T, B, 5, dtype=F64), some_resets(T, B)
    found = []
    for layer in (theirs, ours):
        x = xs.clone().requires_grad_()
        result = bptt.evaluate(layer, square, [bptt.Chunk(xs, ys, rows)])
        update = bptt.backward(layer, square, bptt.Chunk(x, ys, rows), memory="64KiB")
        values = [result.loss, *leaves(result.state), update.loss, *leaves(update.state)]
        found.append([*(v.detach() for v in values), *oracle.gradients([x, *layer.parameters()])])
    assert_equal(found[1], found[0], 1e-12)
