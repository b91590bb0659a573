"""is_start and cotangent_weight against torch.nn's layer, one step a call."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt.nn import fits
from support.layers import (
    CELLS,
    F64,
    KERNELS,
    RUNS,
    StepByStep,
    assert_equal,
    cast,
    draw_keywords,
    gradients,
    kernel,
    pair,
    state_of,
    tensors,
    weighted,
)
from support.oracle import leaves, tree_map
from support.refusals import refused


def check(name, T, B, options, keywords, hx=None, kernel_name="eager", dtype=F64, size=3, units=5):
    """Outputs, states and gradients of ours in `dtype` against the definition in float64."""
    theirs, ours = pair(name, size, units, dtype=dtype, **options)
    x = torch.randn(T, B, size, dtype=dtype) if B else torch.randn(T, size, dtype=dtype)
    hx = state_of(name, options.get("num_layers", 1), *([B] if B else []), units, dtype=dtype) if hx else None
    exact = gradients(StepByStep(theirs.double()), cast(x, F64), None if hx is None else cast(hx, F64), **keywords)
    with kernel(kernel_name):
        got = gradients(ours, x, hx, **keywords)
    assert_equal(got, exact, 1e-5 if dtype == torch.float32 else 1e-12, few=16)


@pytest.mark.parametrize(("name", "dtype"), RUNS)
@pytest.mark.parametrize("cell", CELLS)
def test_against_the_definition(cell, name, dtype):
    for i, rows in enumerate([(True, True), (False, False), (True, False), (False, True)]):
        start, weight = draw_keywords(9, 7, i, rows)
        both = {"is_start": start, "cotangent_weight": weight}
        for keywords in (both, {"is_start": start}, {"cotangent_weight": weight}):
            for hx in (False, True):
                check(cell, 9, 7, {}, keywords, hx, name, dtype, units=19)
    start, weight = draw_keywords(6, 3, 9)
    check(cell, 6, 3, {"num_layers": 3}, {"is_start": start, "cotangent_weight": weight}, True, name, dtype)
    check(cell, 6, 3, {"bias": False}, {"is_start": start, "cotangent_weight": weight}, True, name, dtype)
    start, weight = draw_keywords(6, 1, 9)
    check(cell, 6, 0, {"num_layers": 2}, {"is_start": start, "cotangent_weight": weight}, True, name, dtype)
    check(cell, 6, 0, {}, {"is_start": start[:, 0], "cotangent_weight": weight[:, 0]}, True, name, dtype)


@given(st.sampled_from(CELLS), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40), st.data())
def test_random_calls(cell, T, B, units, data):
    start, weight = draw_keywords(T, B, data.draw(st.integers(0, 999)), data.draw(st.tuples(*[st.booleans()] * 2)))
    keywords = {"is_start": start, "cotangent_weight": weight}
    keywords = {key: value for key, value in keywords.items() if data.draw(st.booleans())}
    options = {"num_layers": data.draw(st.integers(1, 2)), "bias": data.draw(st.booleans())}
    hx, dtype = data.draw(st.booleans()), data.draw(st.sampled_from([torch.float32, F64]))
    torch.manual_seed(T)
    check(cell, T, B, options, keywords, hx, data.draw(st.sampled_from(KERNELS)), dtype, units=units)


@pytest.mark.parametrize("cell", CELLS)
def test_batch_first_takes_them_time_first(cell):
    """Inputs and outputs (B, T, ...); the keywords (T, B) all the same."""
    start, weight = draw_keywords(6, 3, 0)
    _, ours = pair(cell, 3, 5)
    _, turned = pair(cell, 3, 5, batch_first=True)
    turned.load_state_dict(ours.state_dict())
    x = torch.randn(6, 3, 3)
    for layer in (ours, turned):
        layer.zero_grad()
        y, last = layer(x.transpose(0, 1) if layer is turned else x, None, start, weight)
        y = y.transpose(0, 1) if layer is turned else y
        weighted(tensors((y, last))).backward()
    for a, b in zip(ours.parameters(), turned.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("cell", CELLS)
def test_calls_that_the_kernels_dont_serve(cell, dtype, monkeypatch):
    """Projections, say, or "identity": the same by torch's operators."""
    start, weight = draw_keywords(6, 3, 4)
    keywords = {"is_start": start, "cotangent_weight": weight}
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    x = torch.randn(6, 3, 3, dtype=dtype)
    if cell == "LSTM":
        theirs, ours = pair(cell, 3, 5, 2, proj_size=2, dtype=dtype)
        hx = torch.randn(2, 3, 2, dtype=dtype), torch.randn(2, 3, 5, dtype=dtype)
        assert_equal(gradients(ours, x, hx, **keywords), gradients(StepByStep(theirs), x, hx, **keywords), tolerance)
    theirs, ours = pair(cell, 3, 5, 2, dtype=dtype)
    hx = state_of(cell, 2, 3, 5, dtype=dtype)
    expected = gradients(StepByStep(theirs), x, hx, **keywords)
    with monkeypatch.context() as patch:
        patch.setattr(fits, "fused", lambda *_: False)
        assert_equal(gradients(ours, x, hx, **keywords), expected, tolerance)


def linear_layers(dtype=F64):
    """Ours with nonlinearity "identity", and torch.nn's ReLU layer with the weights that keep it positive."""
    theirs, ours = nn.RNN(3, 5, nonlinearity="relu", dtype=dtype), bptt.nn.RNN(3, 5, 1, "identity", dtype=dtype)
    with torch.no_grad():
        for p in theirs.parameters():
            p.abs_()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_identity(name, dtype, served, monkeypatch):
    theirs, ours = linear_layers(dtype)
    start, weight = draw_keywords(6, 3, 4)
    x, hx = torch.rand(6, 3, 3, dtype=dtype), torch.rand(1, 3, 5, dtype=dtype)
    with kernel(name), monkeypatch.context() as patch:
        if not served:
            patch.setattr(fits, "fused", lambda *_: False)
        assert_equal(gradients(ours, x, hx), gradients(theirs, x, hx), 1e-5 if dtype == torch.float32 else 1e-12)
        keywords = {"is_start": start, "cotangent_weight": weight}
        expected = gradients(StepByStep(theirs), x, hx, **keywords)
        assert_equal(gradients(ours, x, hx, **keywords), expected, 1e-5 if dtype == torch.float32 else 1e-12)
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 2, 4]), enforce_sorted=False)
        assert_equal(gradients(ours, packed, hx), gradients(theirs, packed, hx), 1e-5)
        single = gradients(ours, x[:, 0], hx[:, 0])
        assert_equal(single, gradients(theirs, x[:, 0], hx[:, 0]), 1e-5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_entry_t_is_that_of_the_state_after_step_t(cell, name):
    """By hand: a zero at t is a detach of s_t, and the last entry is that of the returned state alone."""
    _, ours = pair(cell, 3, 5, dtype=torch.float32)
    x, hx = torch.randn(6, 2, 3), state_of(cell, 1, 2, 5)
    w = torch.ones(6)
    w[3] = 0
    with kernel(name):
        y, last = ours(x, hx, cotangent_weight=w)
        got = torch.autograd.grad(weighted([y, *leaves(last)]), list(ours.parameters()))
        first, between = ours(x[:4], hx)
        second, end = ours(x[4:], tree_map(lambda s: s.detach(), between))
        expected = torch.autograd.grad(
            weighted([torch.cat([first, second]), *leaves(end)]), list(ours.parameters()), retain_graph=True
        )
        assert_equal(list(got), list(expected), 2e-6)
        w = torch.ones(6)
        w[5] = 0
        y, last = ours(x.requires_grad_(), hx, cotangent_weight=w)
        assert not any(torch.autograd.grad(weighted(leaves(last)), x, retain_graph=True)[0].flatten().tolist())
        alone = torch.autograd.grad(weighted([y]), x, retain_graph=True)[0]
        both = torch.autograd.grad(weighted([y, *leaves(last)]), x)[0]
        assert torch.equal(alone, both)


@pytest.mark.parametrize(("name", "dtype"), RUNS)
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_cut_never_leaks(cell, dtype, name):
    """NaN in a state that is reset, and an infinite cotangent times w = 0."""
    _, ours = pair(cell, 3, 5, 2, dtype=dtype)
    x, hx = torch.randn(6, 2, 3, dtype=dtype), state_of(cell, 2, 2, 5, dtype=dtype)
    broken = tree_map(lambda s: torch.full_like(s, float("nan")), hx)
    start = torch.zeros(6, 2, dtype=torch.bool)
    start[0] = True
    with kernel(name):
        got = gradients(ours, x, broken, is_start=start)
        assert_equal(got, gradients(ours, x, tree_map(torch.zeros_like, hx), is_start=start))
        assert all(torch.isfinite(g).all() for g in got)
        weight = torch.ones(6, 2, dtype=dtype)
        weight[5, 1] = 0
        y, last = ours(x.requires_grad_(), hx, cotangent_weight=weight)
        infinite = [torch.zeros_like(s).index_fill(1, torch.tensor([1]), float("inf")) for s in leaves(last)]
        (dx,) = torch.autograd.grad([y, *leaves(last)], x, [torch.ones_like(y), *infinite])
        assert torch.isfinite(dx).all()


@pytest.mark.parametrize("cell", CELLS)
def test_resets_of_all_and_of_none(cell):
    _, ours = pair(cell, 3, 5, 2)
    x, hx = torch.randn(6, 2, 3), state_of(cell, 2, 2, 5)
    plain = gradients(ours, x, hx)
    same = gradients(ours, x, hx, is_start=torch.zeros(6, 2, dtype=torch.bool), cotangent_weight=torch.ones(6))
    exact = (
        bptt.nn.kernels.chosen is not None
    )  # else torch.nn's own forward runs without keywords, and rounds differently
    assert_equal(same, plain, 0 if exact else 1e-5)
    as_numbers = gradients(ours, x, hx, is_start=torch.zeros(6, dtype=torch.uint8))
    assert_equal(as_numbers, plain, 0 if exact else 1e-5)
    every = ours(x, hx, is_start=torch.ones(6, dtype=torch.bool))[0]
    alone = torch.cat([ours(x[t : t + 1])[0] for t in range(6)])
    assert_equal([every], [alone])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("units", [1, 5])
@pytest.mark.parametrize("cell", CELLS)
def test_layouts(cell, units, name):
    """States, inputs and keywords of any strides and of any dtype that says the same."""
    _, ours = pair(cell, 3, units)
    start, weight = draw_keywords(6, 4, 2)
    x, h, c = torch.randn(4, 6, 3).transpose(0, 1), torch.randn(1, units, 4).transpose(1, 2), torch.randn(1, units, 1)
    hx = (h, c.transpose(1, 2).expand(1, 4, units)) if cell == "LSTM" else h
    other = {
        "is_start": start.t().contiguous().t().to(torch.int64),
        "cotangent_weight": weight.double().t().clone().t(),
    }
    with kernel(name):
        expected = gradients(
            ours, x.contiguous(), tree_map(torch.Tensor.contiguous, hx), is_start=start, cotangent_weight=weight
        )
        assert_equal(gradients(ours, x, hx, **other), expected)


@pytest.mark.parametrize("keyword", ["is_start", "cotangent_weight"])
@pytest.mark.parametrize("cell", CELLS)
def test_refusals(cell, keyword):
    _, ours = pair(cell, 3, 5)
    _, both = pair(cell, 3, 5, bidirectional=True)
    x = torch.randn(6, 2, 3)
    for shape in ((5, 2), (2, 6), (6, 2, 1), (6, 3), (5,), (), (2,)):
        value = torch.zeros(shape)
        refused(lambda v=value: ours(x, **{keyword: v}), cell, keyword, str(shape), "(6, 2)", "(6,)", kind=ValueError)
    refused(lambda: ours(x[:, 0], **{keyword: torch.zeros(6, 2)}), keyword, "(6, 2)", kind=ValueError)
    refused(lambda: ours(x, **{keyword: [0] * 6}), keyword, "[0, 0, 0, 0, 0, 0]", kind=ValueError)
    refused(lambda: both(x, **{keyword: torch.zeros(6)}), cell, "bidirectional", keyword, kind=ValueError)
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    refused(lambda: ours(packed, **{keyword: torch.zeros(3)}), cell, "PackedSequence", keyword, kind=ValueError)
    turned = pair(cell, 3, 5, batch_first=True)[1]
    refused(lambda: turned(x, **{keyword: torch.zeros(6, 2)}), "(2, 6)", "(6, 2)", kind=ValueError)
