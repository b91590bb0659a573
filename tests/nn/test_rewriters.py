"""Programs that rewrite models: torch.fx, torch.export, torch.jit, torch.ao.quantization. As torch.nn, or one line."""

import copy
import warnings

import pytest
import torch
from torch import nn

import bptt
from support.layers import CELLS, assert_equal, state_of, tensors

T, B, SIZE, H = 9, 2, 3, 4
torchs_own = pytest.mark.filterwarnings(  # which torch.nn's layers give as well
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:The tensor attributes self.layer",
    "ignore:torch.quantize_per_tensor",
)


class Net(nn.Module):
    """A layer with a head; more: what its call gets besides, as buffers."""

    def __init__(self, layer, **more):
        super().__init__()
        self.layer, self.head, self.names = layer, nn.Linear(layer.hidden_size, 2), list(more)
        for name, value in more.items():
            self.register_buffer(name, value)

    def forward(self, x):
        y, _ = self.layer(x, **{name: getattr(self, name) for name in self.names})
        return self.head(y)


class Scriptable(nn.Module):
    """The same without keywords, in what torch.jit.script knows."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 2)

    def forward(self, x: torch.Tensor):
        y, _ = self.layer(x)
        return self.head(y)


def one_line(call, kind, *parts):
    with pytest.raises(kind) as error:
        call()
    said = str(error.value)
    assert "\n" not in said
    assert len(said) <= 200
    assert all(part in said for part in parts), said


class Stateful(nn.Module):
    """A state that goes in and out."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, hx):
        y, last = self.layer(x, hx)
        return y.relu(), last


@pytest.mark.parametrize("cell", CELLS)
def test_fx(cell):
    """A layer is one call of a module in the graph, as torch.nn's are, keywords and states included."""
    x, layer = torch.randn(T, B, SIZE), getattr(bptt.nn, cell)(SIZE, H)
    for net in (Net(layer), Net(layer, is_start=torch.rand(T, B) < 0.3, cotangent_weight=torch.rand(T))):
        traced = torch.fx.symbolic_trace(net)
        assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["layer", "head"]
        assert type(traced.layer) is type(layer)
        found = [torch.autograd.grad(m(x).square().sum(), layer.weight_hh_l0)[0] for m in (traced, net)]
        assert torch.equal(*found)
    net, hx = Stateful(layer), state_of(cell, 1, B, H)
    assert_equal(tensors(torch.fx.symbolic_trace(net)(x, hx)), tensors(net(x, hx)))
    one_line(lambda: torch.fx.symbolic_trace(layer), TypeError, f"bptt.nn.{cell}", "trace a module that has it")


@torchs_own
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.thin
def test_export(cell, strict):
    """To torch.nn's own operators."""
    x, layer = torch.randn(T, B, SIZE), getattr(bptt.nn, cell)(SIZE, H, num_layers=2)
    net = Net(layer).eval()
    program = torch.export.export(net, (x,), strict=strict)
    assert_equal([program.module()(x)], [net(x)])
    net = Net(layer, embedding=torch.randn(5, SIZE)).eval()
    ids = torch.randint(5, (T, B))
    assert_equal([torch.export.export(net, (ids,), strict=strict).module()(ids)], [net(ids)])
    given = {"is_start": torch.zeros(T, B, dtype=torch.bool), "cotangent_weight": torch.ones(T)}
    for keyword, value in given.items():
        net = Net(layer, **{keyword: value}).eval()
        if strict:
            said = f"torch.export can't take {keyword}=|<class 'TypeError'>"  # among dynamo's words; 2.8: the type
            with pytest.raises(Exception, match=said):
                torch.export.export(net, (x,), strict=True)
        else:
            one_line(lambda net=net: torch.export.export(net, (x,), strict=False), TypeError, keyword)


@torchs_own
@pytest.mark.parametrize("cell", CELLS)
def test_script_and_trace(cell):
    x, layer = torch.randn(T, B, SIZE), getattr(bptt.nn, cell)(SIZE, H)
    net = Scriptable(layer)
    for what in (net, layer):
        one_line(lambda what=what: torch.jit.script(what), TypeError, f"bptt.nn.{cell}", "convert(model, back=True)")
    assert net.layer is layer
    assert_equal([torch.jit.trace(net, (x,))(x)], [net(x)])
    expected = net(x)
    assert_equal([torch.jit.script(bptt.nn.convert(net, back=True))(x)], [expected])


@torchs_own
@pytest.mark.parametrize("cell", CELLS)
def test_dynamic_quantization(cell):
    """It looks for torch.nn's types and leaves all others, now with a warning; asked for by name ours are refused."""
    quantize = torch.ao.quantization.quantize_dynamic
    net, said = Net(getattr(bptt.nn, cell)(SIZE, H)), "convert(model, back=True)"
    if cell == "RNN":  # neither does it quantise torch.nn's
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*bptt")
            assert type(quantize(net).layer) is bptt.nn.RNN
        return
    with pytest.warns(UserWarning, match="leaves bptt.nn.* in floating point.*back=True"):
        assert type(quantize(net).layer) is type(net.layer)
    one_line(lambda: quantize(net, {type(net.layer)}), TypeError, f"bptt.nn.{cell}", said)
    one_line(lambda: quantize(net, {"layer"}), TypeError, f"bptt.nn.{cell}", said)
    assert not hasattr(net.layer, "qconfig")
    torchs = copy.deepcopy(net)
    quantized = quantize(bptt.nn.convert(torchs, back=True))
    assert "quantized" in type(quantized.layer).__module__
    x = torch.randn(T, B, SIZE)
    torch.testing.assert_close(quantized(x), net(x), atol=0.05, rtol=0.05)
