"""`diagnose` against plain autograd, lag by lag, and against the engine's own truncated gradients."""

import math

import pytest
import torch
from torch import nn

import bptt
from bptt.analysis.diagnose import diagnose
from support.cases import F64, NAMES, ComplexStep, DictStep, make, some_resets, square
from support.oracle import along_rows, differentiable, leaves, steps, tree_map


def brute_force(case, state, is_start=None, mask=None):
    """norms[k - 1, t, b] of ∂l_t/∂s_{t-k}, one call of autograd for each pair (t, k); s_{-1} is `state`."""
    T, B = case.ys.shape[:2]
    dims = leaves(tree_map(lambda _: case.batch_dim, state) if isinstance(case.batch_dim, int) else case.batch_dim)
    state = tree_map(lambda v: v.clone().requires_grad_() if differentiable(v) else v, state)
    before, losses = [], []
    for t in range(T):
        # a leaf computed from another (m from h, c and h) must not lend it its cotangent: coordinates of one point
        state = tree_map(lambda v: v.clone() if differentiable(v) else v, state)
        before.append(state)
        if is_start is not None:
            fresh = dict(enumerate(leaves(case.zeros())))
            order = iter(range(len(fresh)))
            state = tree_map(lambda v: _reset(v, is_start[t], fresh, dims, next(order)), state)  # noqa: B023
        y, state = case.model(steps(case.xs, t, t + 1), state)
        value = square(y, steps(case.ys, t, t + 1))[0]
        losses.append((value if mask is None else value * along_rows(mask[t], value, 0)).mean())
    norms = torch.full((T, T, B), math.nan, dtype=F64)
    for t in range(T):
        for k in range(1, t + 2):
            pairs = [(v, d) for v, d in zip(leaves(before[t - k + 1]), dims, strict=True) if differentiable(v)]
            grads = torch.autograd.grad(losses[t], [v for v, _ in pairs], retain_graph=True, allow_unused=True)
            total = torch.zeros(B, dtype=F64)
            for g, (_, d) in zip(grads, pairs, strict=True):
                total += 0 if g is None else g.abs().square().movedim(d, 0).flatten(1).sum(1)
            norms[k - 1, t] = total.sqrt()
    return norms


def _reset(value, rows, fresh, dims, i):
    return torch.where(along_rows(rows, value, dims[i]), fresh[i], value)


def gradient(case, state, strategy=None, loss=square):
    """All parameters' gradient of Σ_t l_t, in one vector, by the engine."""
    case.model.zero_grad()
    strategy = strategy or bptt.FullBPTT()
    data = (case.xs, case.ys)
    bptt.backward(case.model, loss, data, state, strategy=strategy, reduction="sum", state_batch_dim=case.batch_dim)
    found = torch.cat([p.grad.flatten() for p in case.parameters()])
    case.model.zero_grad()
    return found


def close(found, wanted, tolerance=1e-12):
    assert torch.allclose(found, wanted, rtol=tolerance, atol=1e-15, equal_nan=True), (found - wanted).abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_those_of_autograd_lag_by_lag(name):
    case = make(name, T=9)
    state = case.random_state()
    found = diagnose(case.model, square, (case.xs, case.ys), state, state_batch_dim=case.batch_dim)
    wanted = brute_force(case, state)
    assert wanted[8, 8].min() > 0  # the last loss reaches the initial state
    assert found.norms.shape == (9, 9, 2)
    close(found.norms, wanted)
    for k in range(9):
        values = wanted[k, k:].flatten()
        close(found.mean[k], values.mean())
        close(found.quantiles[:, k], torch.quantile(values, torch.tensor([0.1, 0.5, 0.9], dtype=F64)))


@pytest.mark.parametrize("name", ["lstm2", "dict"])
def test_norms_with_resets_mask_and_a_short_reach(name):
    case = make(name, T=8)
    state, resets, mask = case.random_state(), some_resets(8, 2), ~some_resets(8, 2, seed=5)
    assert resets[1:].any()
    assert not mask.all()
    wanted = brute_force(case, state, resets, mask)
    found = diagnose(
        case.model,
        square,
        bptt.Chunk(case.xs, case.ys, resets, mask),
        state,
        initial_state=case.zeros,
        state_batch_dim=case.batch_dim,
        max_lag=5,
    )
    assert (wanted[:5] == 0).any()
    close(found.norms, wanted[:5])


@pytest.mark.parametrize("name", ["lstm2", "gru", "dict", "complex"])
def test_what_a_truncation_drops_is_what_the_engine_drops(name):
    case = make(name, T=10)
    state = case.random_state()
    found = diagnose(
        case.model, square, (case.xs, case.ys), state, state_batch_dim=case.batch_dim, truncations=[1, 2, 3, 7, 10]
    )
    full = gradient(case, state)
    assert found.gradient_norm == pytest.approx(full.norm().item(), rel=1e-12)
    for shares, kind in ((found.dropped, lambda tau: bptt.TruncatedBPTT(1, tau)), (found.windows, bptt.TruncatedBPTT)):
        assert list(shares) == [1, 2, 3, 7, 10]
        for tau, share in shares.items():
            wanted = ((full - gradient(case, state, kind(tau))).norm() / full.norm()).item()
            assert share == pytest.approx(wanted, rel=1e-10, abs=1e-14)
        assert shares[1] > 1e-3
        assert shares[10] < 1e-14


def test_a_loss_with_parameters_counts_and_params_restricts():
    case = make("gru", T=6)
    head = nn.Linear(4, 4, dtype=F64)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, outputs, targets):
            return square(self.head(outputs), targets)

    loss = Loss()
    full = gradient(case, case.zeros(), loss=loss)
    both = torch.cat([full, *(p.grad.flatten() for p in head.parameters())]).norm().item()
    head.zero_grad()
    assert diagnose(case.model, loss, (case.xs, case.ys)).gradient_norm == pytest.approx(both, rel=1e-12)
    of_model = diagnose(case.model, loss, (case.xs, case.ys), params=case.model.parameters())
    assert of_model.gradient_norm == pytest.approx(full.norm().item(), rel=1e-12)


@pytest.mark.parametrize("name", ["rnn2", "dict", "complex"])
def test_singular_values_are_those_of_the_chain(name):
    case = make(name, T=7)
    state, row = case.random_state(), 1
    found = diagnose(
        case.model, square, (case.xs, case.ys), state, state_batch_dim=case.batch_dim, singular_lags=[1, 4, 7]
    )
    for lag, values in found.singular_values.items():
        begin = case.model(steps(case.xs, 0, 7 - lag), state)[1] if lag < 7 else state
        close(values[row], torch.linalg.svdvals(_jacobian(case, begin, 7 - lag, row)), 1e-9)
    assert list(found.singular_values) == [1, 4, 7]


def _jacobian(case, begin, t, row):
    """∂(last state)/∂(state before step t) of one row, floating leaves as real numbers."""
    floats = [v.detach() for v in leaves(begin) if differentiable(v)]
    dim = case.batch_dim

    def real(v):
        v = torch.view_as_real(v) if v.is_complex() else v
        return v.select(dim, row)

    parts = [real(v) for v in floats]

    def end(*values):
        filled = []
        for value, v in zip(values, floats, strict=True):
            whole = (torch.view_as_real(v) if v.is_complex() else v).clone()
            whole.select(dim, row).copy_(value)
            filled.append(torch.view_as_complex(whole) if v.is_complex() else whole)
        order = iter(filled)
        state = tree_map(lambda v: next(order) if differentiable(v) else v, begin)
        after = case.model(steps(case.xs, t, 7), state)[1]
        return torch.cat([real(v).flatten() for v in leaves(after) if differentiable(v)])

    blocks = torch.autograd.functional.jacobian(end, tuple(parts))
    return torch.cat([block.flatten(1) for block in blocks], 1)


@pytest.mark.parametrize("name", ["lstm2", "dict"])
def test_operators_without_a_batched_rule_go_through_a_loop(name, monkeypatch):
    """A custom function whose backward refuses batched cotangents gives the same diagnosis."""
    calls = []

    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, cotangent):
            calls.append(float(cotangent.sum()))  # .item() has no rule for a batch
            return cotangent

    case = make(name, T=5)
    plain = diagnose(case.model, square, (case.xs, case.ys), case.zeros(), state_batch_dim=case.batch_dim)
    loss = lambda outputs, targets: square(Stubborn.apply(outputs), targets)  # noqa: E731
    found = diagnose(case.model, loss, (case.xs, case.ys), case.zeros(), state_batch_dim=case.batch_dim)
    assert calls
    close(found.norms, plain.norms)
    close(found.exponents, plain.exponents, 1e-9)
    assert found.dropped == pytest.approx(plain.dropped, rel=1e-12)


def test_everything_is_left_as_it_was():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.drop = DictStep(3, 4), nn.Dropout(0.3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, state):
            self.calls += 1
            return self.inner(self.drop(x), state)

    case = make("dict", T=6)
    model = bptt.scan(Noisy())
    fired = []
    for p in model.parameters():
        p.grad = torch.ones_like(p)
        p.register_post_accumulate_grad_hook(fired.append)
    encoder = torch.ones((), dtype=F64, requires_grad=True)
    xs, state = case.xs * encoder, {**case.zeros(), "h": torch.ones(2, 4, dtype=F64) * encoder}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    noise = torch.get_rng_state()
    with torch.no_grad():
        one = diagnose(model, square, (xs, case.ys), state, state_batch_dim=0)
        two = diagnose(model, square, (xs, case.ys), state, state_batch_dim=0)
    assert torch.equal(noise, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert not fired
    assert encoder.grad is None
    (xs.sum() + state["h"].sum()).backward()  # the user's graph is still there
    torch.testing.assert_close(one.norms, two.norms, rtol=0, atol=0, equal_nan=True)


def test_one_diagnosis_by_row_or_of_the_whole_state():
    """Without the rows' axis the state is one row: the same total norm, and a state size B times as large."""
    torch.manual_seed(1)
    model = bptt.scan(ComplexStep(3, 4))
    case = make("complex", T=6)
    by_row = diagnose(model, square, (case.xs, case.ys), case.random_state(), state_batch_dim=0)
    whole = diagnose(model, square, (case.xs, case.ys), case.random_state())
    assert (by_row.rows, by_row.state_size, whole.rows, whole.state_size) == (2, 8, 1, 16)
    close(whole.norms[:, :, 0], by_row.norms.square().sum(2).sqrt())
    close(whole.exponents.sum(), by_row.exponents.sum())  # log |det|, however the steps divide it


def test_unbatched_layers_and_batch_first():
    model = nn.GRU(3, 4, dtype=F64)
    xs, ys = torch.randn(5, 3, dtype=F64), torch.randn(5, 4, dtype=F64)
    alone = diagnose(model, square, (xs, ys))
    rows = diagnose(model, square, (xs[:, None], ys[:, None]))
    first = nn.GRU(3, 4, dtype=F64, batch_first=True)
    first.load_state_dict(model.state_dict())
    turned = diagnose(first, square, (xs[None], ys[None]), time_dim=1)
    assert alone.rows == rows.rows == 1
    close(alone.norms, rows.norms)
    close(turned.norms, rows.norms)
