"""Drop-in for torch.nn: construction, weights both ways, every kind of call, and what torch.nn's layers go through."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import bptt
from bptt.nn import fits
from support.layers import (
    CELLS,
    F64,
    KERNELS,
    assert_equal,
    gradients,
    kernel,
    pair,
    state_of,
    tensors,
    torchs_own_operators,
    weighted,
)
from support.oracle import leaves

OPTIONS = [
    {},
    {"num_layers": 3, "dropout": 0.25},
    {"bias": False, "batch_first": True},
    {"bidirectional": True, "num_layers": 2},
    {"dtype": F64},
    {"device": "meta"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_construction(cell, options):
    """The same arguments, parameters, order and first values, attributes and repr."""
    torch.manual_seed(1)
    theirs = getattr(nn, cell)(3, 5, **options)
    torch.manual_seed(1)
    ours = getattr(bptt.nn, cell)(3, 5, **options)
    assert isinstance(ours, getattr(nn, cell))
    assert repr(ours) == repr(theirs)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (p.shape, p.dtype, p.device, p.requires_grad) == (q.shape, q.dtype, q.device, q.requires_grad)
        assert p.is_meta or torch.equal(p, q)
    for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(ours, name) == getattr(theirs, name)
    for target, source in ((ours, theirs), (theirs, ours)):
        if "device" not in options:
            for p in source.parameters():
                p.data.add_(1)
            target.load_state_dict(source.state_dict())
            assert all(torch.equal(p, q) for p, q in zip(target.parameters(), source.parameters(), strict=True))


def test_positional_arguments():
    for cell, more in (("RNN", ["relu"]), ("GRU", []), ("LSTM", [])):
        arguments = (3, 5, 2, *more, False, True, 0.25, True)
        assert repr(getattr(bptt.nn, cell)(*arguments)) == repr(getattr(nn, cell)(*arguments))
    linear = bptt.nn.RNN(3, 5, 2, "identity", False, True)
    assert (linear.nonlinearity, linear.num_layers, linear.bias, linear.batch_first) == ("identity", 2, False, True)
    assert bptt.nn.RNN(3, 5, nonlinearity="identity").mode == "RNN_IDENTITY"
    assert copy.deepcopy(linear).mode == pickle.loads(pickle.dumps(linear)).mode == "RNN_IDENTITY"


@pytest.mark.parametrize("cell", CELLS)
def test_call_by_keyword(cell):
    theirs, ours = pair(cell, 3, 5)
    assert list(inspect.signature(ours.forward).parameters)[:2] == ["input", "hx"]
    x, hx = torch.randn(6, 2, 3), state_of(cell, 1, 2, 5)
    assert_equal(tensors(ours(input=x, hx=hx)), tensors(theirs(input=x, hx=hx)))
    last = ours(x)[1]
    assert isinstance(last, tuple) == (cell == "LSTM")
    if cell == "LSTM":
        assert_equal(tensors(ours(x, list(hx))), tensors(theirs(x, hx)))


@pytest.mark.parametrize("cell", CELLS)
def test_the_kernels_are_used_and_by_whom(cell, monkeypatch):
    """Where the kernels are faster than torch.nn each layer and direction is one node; elsewhere none is."""
    stepwise = 0 if cell == "LSTM" else 4  # step by step in PyTorch: torch.nn's LSTM is faster
    ours = getattr(bptt.nn, cell)(3, 5, 2, bidirectional=True)
    count = []
    real = bptt.nn.layer.Layer.forward
    monkeypatch.setattr(
        bptt.nn.layer.Layer, "forward", staticmethod(lambda *a: count.append(1) or real(*a)), raising=True
    )
    ours(torch.randn(8, 2, 3))
    expected = stepwise if bptt.nn.kernels.chosen is None else 4
    assert len(count) == expected
    ours(pack_sequence([torch.randn(3, 3)]))
    assert len(count) == expected + 4
    ours.double()(torch.randn(8, 3, dtype=F64))
    assert len(count) == expected + 4 + stepwise
    for other in (torch.bfloat16, torch.float16):
        ours.to(other)(torch.randn(8, 2, 3, dtype=other))
    ours.float()
    if autocast_serves(cell):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours(torch.randn(8, 2, 3))
    ours.to("meta")(torch.randn(8, 2, 3, device="meta"))
    assert len(count) == expected + 4 + stepwise


def autocast_serves(cell: str) -> bool:
    """Whether torch.nn's own layer runs in bfloat16 here: its LSTM doesn't on processors without AVX-512."""
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            getattr(nn, cell)(3, 5)(torch.randn(8, 2, 3))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "autocast"])
@pytest.mark.parametrize("cell", CELLS)
def test_other_dtypes_are_torchs(cell, dtype, options):
    theirs, ours = pair(cell, 3, 5, **options)
    x = torch.randn(8, 2, 3)
    if dtype == "autocast" and not autocast_serves(cell):
        for layer in (theirs, ours):
            with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError):
                layer(x)
        return
    results = []
    for layer in (theirs, ours):
        if dtype == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                values = tensors(layer(x))
        else:
            values = tensors(layer.to(dtype)(x.to(dtype)))
        grads = torch.autograd.grad(weighted(values), list(layer.parameters()))
        results.append([*values, *grads])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_dropout_draws_torchs_masks(cell, name):
    theirs, ours = pair(cell, 3, 50, 3, dropout=0.5)
    x = torch.randn(6, 4, 3)
    with kernel(name):
        for training in (True, False):
            found = []
            for layer in (theirs, ours):
                layer.train(training)
                torch.manual_seed(7)
                found.append([*gradients(layer, x), torch.rand(3)])  # and leaves the generator where torch.nn does
            assert_equal(found[1], found[0])
            assert torch.equal(found[1][-1], found[0][-1])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_packed_sequences(cell, batch_first, name):
    theirs, ours = pair(cell, 3, 5, 2, bidirectional=True, batch_first=batch_first)
    x, hx = torch.randn(4, 7, 3), state_of(cell, 4, 4, 5)
    with kernel(name):
        for lengths in ([7, 7, 7, 7], [7, 5, 5, 1], [1, 7, 3, 2], [1, 1, 1, 1]):
            packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
            for state in (None, hx):
                assert_equal(gradients(ours, packed, state), gradients(theirs, packed, state))
        y = ours(packed)[0]
        assert y.sorted_indices is packed.sorted_indices
        assert y.unsorted_indices is packed.unsorted_indices


@pytest.mark.parametrize("cell", CELLS)
def test_layouts_of_state_and_input(cell):
    """Whatever the strides of what is passed, expanded and sliced tensors among them."""
    theirs, ours = pair(cell, 6, 5)
    inputs = {
        "strided": torch.randn(6, 3, 12)[..., ::2],
        "transposed": torch.randn(3, 6, 6).transpose(0, 1),
        "turned": torch.randn(6, 6, 3).transpose(1, 2),
        "one for all": torch.randn(6, 3, 1).expand(6, 3, 6),
        "one row": torch.randn(6, 1, 6)[:, :, ::1].expand(6, 3, 6),
        "one step": torch.randn(1, 3, 6).expand(6, 3, 6),
        "single": torch.randn(6, 1, 1).expand(6, 1, 6),
        "reversed": torch.randn(6, 3, 6).flip(0)[::2].repeat(2, 1, 1),
    }
    for x in inputs.values():
        for make in (
            lambda n: torch.randn(1, 5, n).transpose(1, 2),
            lambda n: torch.randn(1, 1, 5).expand(1, n, 5),
            lambda n: torch.randn(1, n, 10)[..., ::2],
        ):
            h, c = make(x.shape[1]), make(x.shape[1])
            hx = (h, c) if cell == "LSTM" else h
            assert_equal(gradients(ours, x, hx), gradients(theirs, x, hx))


@pytest.mark.parametrize("cell", CELLS)
def test_copies(cell):
    ours = getattr(bptt.nn, cell)(3, 5, 2)
    x = torch.randn(6, 2, 3)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), copy.copy(ours)):
        assert type(other) is type(ours)
        assert_equal(gradients(other, x), gradients(ours, x))
        assert torch.equal(tensors(other(x))[0], tensors(ours(x))[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:The tensor attributes:UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("cell", CELLS)
def test_what_only_torchs_operators_can(cell):
    """Transforms, forward differentiation, tracing, export, dispatch modes: torch.nn's results."""
    from torch.autograd import forward_ad
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(8, 2, 3)
    results = []
    for layer in pair(cell, 3, 5, 2):
        weights = dict(layer.named_parameters())

        def loss(weights, layer=layer):
            return torch.func.functional_call(layer, weights, (x,))[0].square().sum()

        found = list(torch.func.grad(loss)(weights).values())
        with torchs_own_operators():
            found.append(torch.func.jvp(lambda x, layer=layer: layer(x)[0], (x,), (torch.ones_like(x),))[1])
        with forward_ad.dual_level(), torchs_own_operators():
            y = layer(forward_ad.make_dual(x, torch.ones_like(x)))[0]
            found.append(forward_ad.unpack_dual(y).tangent.clone())
        found.append(torch.jit.trace(layer, (x,))(x * 2)[0])
        found.append(torch.export.export(nn.Sequential(layer), (x,)).module()(x * 2)[0])
        with FlopCounterMode(display=False) as counter:
            found.append(layer(x)[0])
        found.append(torch.tensor(float(counter.get_total_flops())))
        results.append([f.detach() for f in found])
        with pytest.raises(RuntimeError, match="Batching rule not implemented"):  # nor can torch.nn
            torch.func.vmap(layer)(x[None])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_functional_call_and_parametrizations(cell):
    theirs, ours = pair(cell, 3, 5)
    x = torch.randn(8, 2, 3)
    found = []
    for layer in (theirs, ours):
        weights = {n: (1.5 * p.detach()).requires_grad_() for n, p in layer.named_parameters()}
        values = tensors(torch.func.functional_call(layer, weights, (x,)))
        found.append([*values, *torch.autograd.grad(weighted(values), list(weights.values()))])
        nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
        found[-1] += gradients(layer, x)
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("cell", CELLS)
def test_short_calls(cell):
    """A generation loop: single steps, with and without a graph, equal the whole sequence."""
    _, ours = pair(cell, 3, 5, 2)
    x, state, outputs = torch.randn(12, 2, 3), None, []
    whole = tensors(ours(x))
    for t in range(12):
        with torch.set_grad_enabled(t % 2 == 0):
            y, state = ours(x[t : t + 1], state)
        outputs.append(y.detach())
    assert_equal([torch.cat(outputs), *(s.detach() for s in leaves(state))], whole)
    if bptt.nn.kernels.chosen is not None:
        assert fits._pays(ours, x[:1], False)
        assert not fits._pays(ours, torch.randn(1, 9, 3), False)
    for T in range(1, 12):
        assert_equal([ours(x[:T])[0]], [whole[0][:T]])
