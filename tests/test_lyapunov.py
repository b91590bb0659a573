"""Growth rates and Lyapunov exponents: linear maps with known spectra, renormalisation, regimes, and bad input."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

import bptt
from bptt.analysis.diagnose import diagnose
from bptt.analysis.spectrum import lyapunov
from support.cases import F64, make, square
from support.refusals import refused


def apart(n, seed, top=1.3, ratio=1.12):
    """W = V D V⁻¹ with moduli apart by `ratio`, about half of them of complex pairs, cond V <= 100; log |λ|, sorted."""
    g = torch.Generator().manual_seed(seed)
    D, logs, i, modulus = torch.zeros(n, n, dtype=F64), [], 0, top
    while i < n:
        if (i + seed) % 3 == 1 and i + 1 < n:  # for seed = 1 the top ones are a pair
            angle = 0.3 + 2.5 * torch.rand((), generator=g, dtype=F64)
            c, s = modulus * angle.cos(), modulus * angle.sin()
            D[i : i + 2, i : i + 2] = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
            logs += [math.log(modulus)] * 2
            i += 2
        else:
            D[i, i] = -modulus if i % 2 else modulus
            logs.append(math.log(modulus))
            i += 1
        modulus /= ratio
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=F64)).Q for _ in range(2))
    V = left @ torch.diag(torch.logspace(0, math.log10(90), n, dtype=F64)) @ right
    assert torch.linalg.cond(V) <= 100
    return V @ D @ torch.linalg.inv(V), torch.tensor(logs, dtype=F64)


def pairs_by_their_mean(exponents, logs):
    """Exponents of equal modulus replaced by their mean."""
    found, i = exponents.clone(), 0
    while i < len(logs):
        same = (logs == logs[i]).sum()
        found[i : i + same] = exponents[i : i + same].mean()
        i += int(same)
    return found


def linear(W, steps, **more):
    """Diagnose h = W h, one matrix (B, n, n) a row, along h = 0, where nothing overflows."""
    model = bptt.scan(lambda x, h: (h, torch.einsum("bij,bj->bi", W, h)))
    more = {"max_lag": 1, "singular_lags": [], "discard": steps // 3, **more}
    begin = torch.zeros(W.shape[:2], dtype=F64)
    data = (torch.zeros(steps, 1), None)
    return diagnose(model, lambda outputs, _: outputs.sum(-1), data, begin, state_batch_dim=0, **more)


@pytest.mark.parametrize("n", [4, 7, 16, 32])
def test_spectrum_of_a_linear_map(n):
    W, logs = apart(n, seed=n)
    found = lyapunov([W] * 10_000, discard=1000)
    assert len({round(v, 6) for v in logs.tolist()}) < n  # there are pairs
    assert (pairs_by_their_mean(found, logs) - logs).abs().max() < 1e-9
    assert abs(found.sum() - torch.linalg.slogdet(W).logabsdet) < 1e-9
    assert torch.equal(lyapunov([W] * 40, exponents=2), lyapunov(iter([W] * 40), exponents=2))


@pytest.mark.parametrize("top", [pytest.param(1.3, marks=pytest.mark.deep), 0.6])
def test_spectrum_and_growth_rate_through_diagnose(top):
    made = [apart(8, seed, top) for seed in range(3)]
    found = linear(torch.stack([W for W, _ in made]), 1200)
    for row, (W, logs) in enumerate(made):
        exponents = found.exponents[row]
        assert (pairs_by_their_mean(exponents, logs) - logs).abs().max() < 1e-9
        assert abs(exponents.sum() - torch.linalg.slogdet(W).logabsdet) < 1e-9
        assert abs(found.growth_rates[row] - math.log(top)) < 1e-9
    assert found.regime == ("exploding" if top > 1 else "vanishing")
    few = linear(torch.stack([W for W, _ in made]), 1200, exponents=3)
    assert few.exponents.shape == (3, 3)
    assert (few.growth_rates - math.log(top)).abs().max() < 1e-9


def moduli(W):
    return torch.linalg.eigvals(W).abs().log().sort(descending=True).values


@pytest.mark.parametrize("n", [4, 16, 32])
def test_spectrum_of_random_matrices(n):
    W = torch.randn(4, n, n, dtype=F64) / n**0.5
    found = lyapunov([W] * 10_000, discard=1000)
    for row in range(4):
        logs = moduli(W[row])
        assert abs(found[row].sum() - logs.sum()) < 1e-9
        near = (logs[:, None] - logs).abs() < 1e-9  # the members of a pair
        assert (near.to(F64) @ found[row] / near.sum(1) - logs).abs().max() < 1e-3


@pytest.mark.deep
def test_growth_rate_of_random_matrices_through_diagnose():
    """At its defaults for 10,000 steps. Two near top exponents can't be told from a pair: 1e-3."""
    W = torch.randn(4, 12, 12, dtype=F64) / 12**0.5
    found = linear(W, 10_000, discard=None, exponents=2)
    for row in range(4):
        assert abs(found.growth_rates[row] - moduli(W[row])[0]) < 1e-3


@pytest.mark.parametrize("rate", [0.05, 20.0])
def test_norms_and_rates_survive_where_single_precision_doesn_t(rate):
    """rate ** 200 is 1e±260: beyond float32 by far, and the rate comes out all the same."""
    steps = 200
    model = bptt.scan(lambda x, h: (h, rate * h))
    found = diagnose(model, lambda o, _: o, (torch.zeros(steps), None), torch.zeros(()), max_lag=steps)
    wanted = float(torch.tensor(rate)) ** torch.arange(steps, dtype=F64)
    torch.testing.assert_close(found.mean, wanted, rtol=1e-4, atol=0)
    assert found.growth_rate == pytest.approx(math.log(rate), abs=1e-6)


def test_regimes_and_memory_length():
    def of(rate, steps=50, **more):
        model = bptt.scan(lambda x, h: (h, rate * h))
        begin = torch.zeros((), dtype=F64)
        return diagnose(model, lambda o, _: o, (torch.zeros(steps), None), begin, **more)

    assert [of(rate).regime for rate in (0.9, 0.99, 1.0, 1.01, 1.1)] == [
        "vanishing",
        "marginal",
        "marginal",
        "marginal",
        "exploding",
    ]
    assert of(0.99, steps=300).regime == "vanishing"
    assert of(0.5).memory_length == 8  # 0.5 ** 7 < 0.01 at lag 8
    assert of(0.5, fraction=0.3).memory_length == 3
    assert of(0.99).memory_length is None
    assert of(0.0).regime == "vanishing"
    assert of(0.0).growth_rate == -math.inf


def test_credit_that_returns_later_is_not_forgotten():
    """A delay line: the loss sees the state of 5 steps ago, nothing between."""
    model = bptt.scan(lambda x, h: (h[-1], torch.cat([x[None], h[:-1]])))
    xs = torch.randn(12, dtype=F64)
    found = diagnose(model, lambda o, _: o.square(), (xs, None), torch.ones(5, dtype=F64))
    assert found.mean.count_nonzero() == 5  # from lag 1, where h[-1] is read, to lag 5, where it was h[0]
    assert found.memory_length == 6
    assert (found.exponents == -math.inf).any()


def test_growth_between_resets():
    """A reset row's zero Jacobian is left out of the mean, and the row goes on."""
    W = torch.stack([apart(4, seed=1)[0], apart(4, seed=2)[0]])
    model = bptt.scan(lambda x, h: (h, torch.einsum("bij,bj->bi", W, h)))
    resets = torch.zeros(300, 2, dtype=torch.bool)
    resets[::30, 1] = True
    begin = torch.zeros(2, 4, dtype=F64)
    chunk = bptt.Chunk(torch.zeros(300, 2), None, resets)
    found = diagnose(model, lambda o, _: o.sum(-1), chunk, begin, initial_state=begin, state_batch_dim=0, discard=0)
    for row in range(2):
        wanted = torch.linalg.slogdet(W[row]).logabsdet
        assert abs(found.exponents[row].sum() - wanted) < 1e-9
    assert (found.norms[40, :, 1].nan_to_num() == 0).all()
    W = torch.diag_embed(
        torch.tensor([[0.5, 0.5, 2.0]] * 2, dtype=F64)
    )  # the top direction is found again after each reset
    top = diagnose(
        model, lambda o, _: o.sum(-1), chunk, begin[:, :3], initial_state=begin[:, :3], state_batch_dim=0, exponents=1
    )
    assert top.growth_rates[1] > 0.55
    every = bptt.Chunk(torch.zeros(9, 2), None, torch.ones(9, 2, dtype=torch.bool))
    begin = begin[:, :3]
    cut = diagnose(model, lambda o, _: o.sum(-1), every, begin, initial_state=begin, state_batch_dim=0)
    assert cut.regime == "undefined"


def test_spectral_radius_where_there_is_one():
    rnn = nn.RNN(3, 4, 2, dtype=F64)
    xs, ys = torch.randn(4, 2, 3, dtype=F64), torch.randn(4, 2, 4, dtype=F64)
    found = diagnose(rnn, square, (xs, ys)).spectral_radius
    assert list(found) == ["weight_hh_l0", "weight_hh_l1"]
    for name, radius in found.items():
        assert radius == pytest.approx(torch.linalg.eigvals(getattr(rnn, name)).abs().max().item(), rel=1e-12)
    gated = make("lstm", T=4)
    assert diagnose(gated.model, square, (gated.xs, gated.ys)).spectral_radius == {}

    class Textbook(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.diag(torch.tensor([0.5, -0.8], dtype=F64)))

        def forward(self, x, h):
            h = self.W @ h + x
            return h, h

    step = Textbook()
    data = (torch.randn(4, 2, dtype=F64), None)
    loss = lambda o, _: o.square()  # noqa: E731
    h0 = torch.zeros(2, dtype=F64)
    assert diagnose(bptt.scan(step), loss, data, h0).spectral_radius == {"step.W": pytest.approx(0.8)}
    nn.utils.parametrizations.orthogonal(step, "W")
    assert diagnose(bptt.scan(step), loss, data, h0).spectral_radius == {"step.W": pytest.approx(1.0)}


def test_the_result_is_frozen():
    found = linear(apart(4, 0)[0][None], 9)
    with pytest.raises(FrozenInstanceError):
        found.steps = 3


GRU = nn.GRU(3, 4)
XS, YS = torch.zeros(6, 2, 3), torch.zeros(6, 2, 4)
BAD = {
    "no step": (lambda: diagnose(GRU, square, (XS[:0], YS[:0])), ["sequence", "T = 0"]),
    "max_lag beyond T": (lambda: diagnose(GRU, square, (XS, YS), max_lag=7), ["max_lag=7", "6 steps", "max_lag=6"]),
    "max_lag 0": (lambda: diagnose(GRU, square, (XS, YS), max_lag=0), ["max_lag", "at least 1"]),
    "lag beyond": (lambda: diagnose(GRU, square, (XS, YS), singular_lags=[9]), ["singular_lags holds 9", "max_lag=6"]),
    "tau beyond": (lambda: diagnose(GRU, square, (XS, YS), truncations=[2, 8]), ["truncations holds 8", "max_lag=6"]),
    "lags no list": (lambda: diagnose(GRU, square, (XS, YS), truncations=3), ["truncations=3", "list"]),
    "lag 0": (lambda: diagnose(GRU, square, (XS, YS), truncations=[0]), ["truncations", "at least 1"]),
    "exponents": (lambda: diagnose(GRU, square, (XS, YS), exponents=5), ["exponents=5", "there are 4"]),
    "discard": (lambda: diagnose(GRU, square, (XS, YS), discard=6), ["discard=6", "0 to 5"]),
    "fraction": (lambda: diagnose(GRU, square, (XS, YS), fraction=1), ["fraction=1", "between 0 and 1"]),
    "levels": (lambda: diagnose(GRU, square, (XS, YS), levels=[50]), ["levels=[50]", "from 0 to 1"]),
    "time_dim": (lambda: diagnose(GRU, square, (XS, YS), time_dim=3), ["time_dim=3"]),
    "no state": (lambda: diagnose(bptt.scan(lambda x, h: (h, h)), square, (XS, YS)), ["state=None", "initial_state="]),
    "loss over time": (lambda: diagnose(GRU, lambda o, y: (o - y).mean(), (XS, YS)), ["reduced over time"]),
    "no graph": (lambda: diagnose(GRU, lambda o, y: o.detach(), (XS, YS)), ["carry no graph"]),
    "not finite": (lambda: diagnose(GRU, lambda o, y: o.sum((1, 2)) / 0, (XS, YS)), ["loss at step 0"]),
    "not a chunk": (lambda: diagnose(GRU, square, XS), ["chunk", "Tensor"]),
    "no floating state": (
        lambda: diagnose(bptt.scan(lambda x, n: (x * n, n + 1)), square, (XS, XS), torch.zeros((), dtype=torch.long)),
        ["no floating leaf", "nothing to diagnose"],
    ),
    "rows of leaves": (
        lambda: diagnose(
            bptt.scan(lambda x, s: (s[0], s)), square, (XS, YS), (torch.zeros(2, 4), torch.zeros(3)), state_batch_dim=0
        ),
        ["state_batch_dim=0", "[2, 3]"],
    ),
    "rows of a called state": (
        lambda: diagnose(
            bptt.scan(lambda x, s: (s[0], s)),
            square,
            (XS, YS),
            initial_state=lambda: (torch.zeros(2, 4), torch.zeros(3)),
            state_batch_dim=0,
        ),
        ["state_batch_dim=0", "[2, 3]"],
    ),
    "factors not square": (lambda: lyapunov([torch.zeros(2, 3)]), ["(2, 3)", "square"]),
    "factors of two sizes": (lambda: lyapunov([torch.eye(2), torch.eye(3)]), ["(3, 3)", "after one of (2, 2)"]),
    "no factor left": (lambda: lyapunov([torch.eye(2)] * 4, discard=4), ["4 matrices", "discard=4"]),
    "no factor": (lambda: lyapunov([]), ["0 matrices"]),
    "too many exponents": (lambda: lyapunov([torch.eye(2)], exponents=3), ["exponents=3", "there are 2"]),
    "negative discard": (lambda: lyapunov([torch.eye(2)], discard=-1), ["discard=-1"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, words = BAD[case]
    refused(call, *words)
