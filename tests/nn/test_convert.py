"""bptt.nn.convert: the same objects, of another class."""

import copy

import pytest
import torch
from torch import nn

import bptt
from support.layers import CELLS, assert_equal, gradients, tensors
from support.refusals import refused


class Model(nn.Module):
    """Layers of all kinds, nested, one of them in two places, its embedding tied to its output."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.first = nn.LSTM(6, 8, 2, dropout=0.3)
        self.rest = nn.ModuleDict({"gru": nn.GRU(8, 6), "list": nn.ModuleList([nn.RNN(6, 6, nonlinearity="relu")])})
        self.again = self.rest["gru"]
        self.out = nn.Linear(6, 11)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.first(self.embedding(tokens))[0]
        x = self.again(x)[0] + self.rest["gru"](x)[0]
        return self.out(self.rest["list"][0](x)[0])


def trained(model, optimizer, steps=3):
    """Losses of a few steps, the dropout drawn from one seed."""
    torch.manual_seed(3)
    tokens, losses = torch.randint(0, 11, (12, 4)), []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(tokens[:-1]).flatten(0, 1), tokens[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_the_same_objects():
    model = Model().eval()
    model.first.weight_hh_l0.requires_grad_(False)
    modules, parameters = list(model.modules()), list(model.parameters())
    names = list(model.state_dict())
    assert bptt.nn.convert(model) is model
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == names
    assert (type(model.first), type(model.rest["gru"]), type(model.rest["list"][0])) == (
        bptt.nn.LSTM,
        bptt.nn.GRU,
        bptt.nn.RNN,
    )
    assert model.again is model.rest["gru"]
    assert model.out.weight is model.embedding.weight
    assert not model.first.weight_hh_l0.requires_grad
    assert not model.first.training
    assert type(model) is Model
    assert bptt.nn.convert(model) is model  # again


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_itself(cell):
    layer = getattr(nn, cell)(3, 5, 2)
    reference = copy.deepcopy(layer)
    assert bptt.nn.convert(layer) is layer
    assert type(layer) is getattr(bptt.nn, cell)
    x = torch.randn(6, 2, 3)
    assert_equal(gradients(layer, x), gradients(reference, x))


def test_training_goes_on_with_the_same_optimizer():
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (ours, theirs)]
    before = [trained(m, o) for m, o in zip((ours, theirs), optimizers, strict=True)]
    assert torch.equal(*before)
    bptt.nn.convert(ours)
    after = [trained(m, o) for m, o in zip((ours, theirs), optimizers, strict=True)]
    torch.testing.assert_close(after[0], after[1], rtol=1e-5, atol=0)
    assert (after[0] < before[0]).all()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_state_dicts_and_hooks():
    model, calls = Model(), []
    model.first.register_forward_hook(lambda *_: calls.append("forward"))
    model.first.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.first.weight_hh_l0.register_hook(lambda _: calls.append("weight"))
    other = Model()
    bptt.nn.convert(model).load_state_dict(other.state_dict())
    other.load_state_dict(model.state_dict())
    model(torch.zeros(6, 2, dtype=torch.long)).sum().backward()
    assert calls == ["forward", "weight", "backward"]


class Mine(nn.LSTM):
    """A subclass, whose own forward stays."""

    def forward(self, input, hx=None):
        """Twice the outputs."""
        y, last = super().forward(input, hx)
        return 2 * y, last


def test_subclasses_are_left_alone():
    model = nn.ModuleList([Mine(3, 5), nn.LSTMCell(3, 5), nn.Linear(3, 5), bptt.nn.GRU(3, 5)])
    types = [type(m) for m in model]
    bptt.nn.convert(model)
    assert [type(m) for m in model] == types


@pytest.mark.parametrize("cell", CELLS)
def test_the_modes_that_torch_nn_has(cell):
    """What the kernels don't know, such as a projection, is left to torch.nn by the converted layer."""
    if cell == "LSTM":
        layer = bptt.nn.convert(nn.LSTM(3, 5, proj_size=2))
        assert tensors(layer.double()(torch.randn(6, 2, 3).double()))[0].shape == (6, 2, 2)
    layer = bptt.nn.convert(getattr(nn, cell)(3, 5, dtype=torch.bfloat16))
    assert tensors(layer(torch.randn(6, 2, 3, dtype=torch.bfloat16)))[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("cell", CELLS)
def test_back(cell):
    """The same objects, options, results."""
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False, "dropout": 0.25}
    options |= {"nonlinearity": "relu"} if cell == "RNN" else {"proj_size": 3} if cell == "LSTM" else {}
    layer = getattr(bptt.nn, cell)(3, 5, **options)
    torchs = getattr(nn, cell)(3, 5, **options)
    torchs.load_state_dict(layer.state_dict())
    parameters, keys, model = list(layer.parameters()), list(layer.state_dict()), nn.ModuleList([layer]).eval()
    assert bptt.nn.convert(model, back=True) is model
    assert model[0] is layer
    assert type(layer) is type(torchs)
    assert repr(layer) == repr(torchs)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert list(layer.state_dict()) == keys
    assert not layer.training
    assert all(getattr(layer, name) == value for name, value in options.items())
    x = torch.randn(6, 2, 3)
    assert_equal(gradients(layer, x), gradients(torchs.eval(), x))
    assert type(bptt.nn.convert(model)[0]) is getattr(bptt.nn, cell)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))


def test_there_and_back():
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    types, before = [type(m) for m in model.modules()], trained(model, optimizer)
    bptt.nn.convert(bptt.nn.convert(model), back=True)
    assert [type(m) for m in model.modules()] == types
    assert (trained(model, optimizer) < before).all()
    mine = nn.ModuleList([Mine(3, 5), Ours(3, 5), bptt.nn.SimpleRNN(3, 5, 2)])
    types = [type(m) for m in mine.modules()]
    assert [type(m) for m in bptt.nn.convert(mine, back=True).modules()] == types


class Ours(bptt.nn.GRU):
    """A subclass of a fused layer, which stays as well."""


def test_the_identity_has_no_way_back():
    """And nothing is converted then."""
    model = nn.Sequential(bptt.nn.GRU(3, 5), bptt.nn.RNN(5, 5, nonlinearity="identity"))
    refused(lambda: bptt.nn.convert(model, back=True), "convert(back=True)", "'1'", '"identity"', kind=ValueError)
    refused(lambda: bptt.nn.convert(model[1], back=True), "convert(back=True)", '"identity"', kind=ValueError)
    assert [type(m) for m in model] == [bptt.nn.GRU, bptt.nn.RNN]
