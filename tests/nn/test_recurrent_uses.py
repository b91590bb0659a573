"""In a graph and in a program: twice, retained, compiled, in threads, under hooks, in other people's modules."""

import threading

import pytest
import torch
from torch import nn

import bptt
from support.layers import CELLS, KERNELS, assert_equal, gradients, kernel, pair, state_of, tensors, weighted


class Tagger(nn.Module):
    """Two recurrent layers in a small model."""

    def __init__(self, module):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.forth = module.GRU(4, 6)
        self.there = module.LSTM(6, 5, bidirectional=True)
        self.out = nn.Linear(10, 2)

    def forward(self, tokens):
        return self.out(self.there(self.forth(self.embedding(tokens))[0])[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled():
    """The layers are a break in the graph, as torch.nn's are; the rest is compiled, and the results are the same."""
    model, tokens = Tagger(bptt.nn), torch.randint(0, 9, (8, 3))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    found = []
    for call in (model, compiled, compiled):
        y = call(tokens)
        found.append([y.detach(), *torch.autograd.grad(weighted([y]), list(model.parameters()))])
    assert_equal(found[1], found[0], 1e-6)
    assert_equal(found[2], found[0], 1e-6)
    layer = bptt.nn.GRU(4, 6)
    compiled = torch.compile(layer, backend="eager")
    x, start = torch.randn(8, 3, 4), torch.arange(8) % 3 == 0
    assert_equal(tensors(compiled(x, None, start)), tensors(layer(x, None, start)))
    theirs, ours = pair("LSTM", 4, 6)
    assert_equal(tensors(torch.compile(ours, backend="eager")(x[:2])), tensors(theirs(x[:2])))


@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice(cell):
    theirs, ours = pair(cell, 3, 5, 2)
    x = torch.randn(8, 2, 3)
    found = []
    for layer in (theirs, ours):
        values = tensors(layer(x))
        loss = weighted(values)
        loss.backward(retain_graph=True)
        values[0].square().sum().backward()
        found.append([p.grad for p in layer.parameters()])
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()
    assert_equal(found[1], found[0], 3e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_twice_in_one_graph(cell):
    """On its own output, and from its own state."""
    theirs, ours = pair(cell, 5, 5)
    x, hx = torch.randn(8, 2, 5), state_of(cell, 1, 2, 5)
    found = []
    for layer in (theirs, ours):
        leaf = x.clone().requires_grad_()
        first, middle = layer(leaf, hx)
        values = tensors(layer(first, middle))
        found.append([v.detach() for v in values])
        found[-1] += torch.autograd.grad(weighted(values), [leaf, *layer.parameters()])
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_two_threads_train_at_once(cell, name):
    """The same as one after the other, to the last bit."""

    def train(seed, results):
        g = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(enabled=False):
            layer = getattr(bptt.nn, cell)(7, 33)
            with torch.no_grad():
                for p in layer.parameters():
                    p.copy_(torch.randn(p.shape, generator=g) / 6)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        for _ in range(6):
            y, _ = layer(torch.randn(40, 60, 7, generator=g))  # outputs of 300 KiB: from the shared buffers
            optimizer.zero_grad()
            y.square().mean().backward()
            optimizer.step()
        results[seed] = [p.detach() for p in layer.parameters()]

    with kernel(name):
        alone, together = {}, {}
        for seed in range(3):
            train(seed, alone)
        threads = [threading.Thread(target=train, args=(seed, together)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed in range(3):
        assert all(torch.equal(a, b) for a, b in zip(alone[seed], together[seed], strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_outputs_outlive_everything(cell):
    """Their memory is not used again while anything holds it."""
    ours = getattr(bptt.nn, cell)(3, 64)
    x = torch.randn(64, 32, 3)
    kept = [ours(x * i)[0].detach()[5:] for i in range(4)]
    copies = [k.clone() for k in kept]
    for _ in range(4):
        ours(x)[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_saved_tensor_hooks_and_checkpoint(cell):
    theirs, ours = pair(cell, 3, 5, 2)
    x = torch.randn(8, 2, 3)
    expected = gradients(theirs, x)
    with torch.autograd.graph.save_on_cpu():
        assert_equal(gradients(ours, x), expected)
    wanted = list(ours.parameters())
    y, _ = torch.utils.checkpoint.checkpoint(ours, x, use_reentrant=False)
    got = torch.autograd.grad(weighted([y]), wanted)
    assert_equal(list(got), list(torch.autograd.grad(weighted([theirs(x)[0]]), list(theirs.parameters()))))


@pytest.mark.parametrize("cell", CELLS)
def test_hooks(cell):
    _, ours = pair(cell, 3, 5)
    x, seen = torch.randn(8, 2, 3), []
    c = torch.arange(8.0)[:, None, None].expand(8, 2, 5)
    (once,) = torch.autograd.grad((ours(x)[0] * c).sum(), [ours.weight_hh_l0])
    y, _ = ours(x)
    y.register_hook(lambda c: seen.append(c.clone()))
    ours.weight_hh_l0.register_hook(lambda c: 2 * c)
    (y * c).sum().backward()
    assert torch.equal(seen[0], c)
    assert torch.equal(ours.weight_hh_l0.grad, 2 * once)


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in LayerBackward")
def test_anomaly_mode():
    with torch.autograd.detect_anomaly():
        y, _ = bptt.nn.LSTM(3, 5)(torch.full((8, 2, 3), float("nan")))
        with pytest.raises(RuntimeError, match="returned nan values"):
            y.sum().backward()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_and_infinity_pass(cell, name):
    """A NaN or an overflow in a row shows in that row, and in no other."""
    theirs, ours = pair(cell, 3, 5)
    for value in (float("nan"), float("inf"), -float("inf"), 1e30, -1e30):
        x = torch.randn(8, 13, 3)
        x[4, 6] = value
        with kernel(name):
            got, expected = ours(x)[0], theirs(x)[0]
        assert torch.equal(got.isnan(), expected.isnan())
        assert_equal([got.nan_to_num(0.0)], [expected.nan_to_num(0.0)])
        assert not got[:, :6].isnan().any()
