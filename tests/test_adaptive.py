"""Adaptive truncation: the rule as a table, the credit by lag against plain autograd, what a run decides."""

import math

import pytest
import torch
from torch import nn

import bptt
from bptt.strategies.decay import Decay
from bptt.strategies.windows import Credit, Probe
from support import oracle
from support.cases import NAMES, make, some_resets, square
from support.refusals import refused
from support.runs import unroll

F64 = torch.float64
ADAPTIVE = bptt.AdaptiveTruncatedBPTT


def geometric(beta: float, lags: int, keep: float = 1.0) -> Credit:
    """φ_k = β^k, all cotangents pointing the same way, or a share `keep` of them left by cancellation."""
    return Credit([beta**k for k in range(lags)], [keep * sum(beta**j for j in range(k + 1)) for k in range(lags)])


def exact_choice(beta: float, tolerance: float) -> int:
    """On φ_k = β^k the dropped share is β^K."""
    return next(k for k in range(1, 10_000) if beta**k < tolerance)


@pytest.mark.parametrize("beta", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("tolerance", [0.9, 0.5, 0.1, 0.02])
def test_on_even_decay_the_choice_is_that_of_the_closed_form(beta, tolerance):
    found = Decay(geometric(beta, int(40 / -math.log(beta))))
    assert found.beta == pytest.approx(beta, rel=1e-12)
    assert found.smallest(tolerance, 1, 1000) == exact_choice(beta, tolerance)
    for k in (0, 1, 5, found.tau, found.tau + 1, 500):
        assert found.dropped(k) == pytest.approx(beta**k / (1 - beta), rel=1e-10)


def test_the_issues_case():
    assert exact_choice(0.9, 0.5) == 7
    assert Decay(geometric(0.9, 100)).smallest(0.5, 2, 100) == 7


def test_any_decay_against_the_sums_written_out():
    """φ that rises, falls and then fades evenly: E(K) by a long sum, one denominator for all K."""
    lags, tau, beta = 40, 24, 0.85
    norms = [1 + math.sin(k) / 2 + k / 10 for k in range(tau)]
    norms += [2.0 * beta ** (k - tau) for k in range(tau, lags)]
    sums = [0.7 * sum(norms[: k + 1]) for k in range(lags)]
    found, long = Decay(Credit(norms, sums)), norms + [2.0 * beta ** (k - tau) for k in range(lags, 2000)]
    assert found.tau == tau
    whole = max(sums[k - 1] - sum(long[k:]) for k in range(1, lags + 1))
    for k in range(1, 80):
        assert found.dropped(k) == pytest.approx(sum(long[k:]), rel=1e-9)
        assert found.bias(k) == pytest.approx(sum(long[k:]) / whole, rel=1e-9)


@pytest.mark.parametrize(
    "credit",
    [geometric(1.0, 50), geometric(1.1, 50), geometric(0.9, 50, keep=0.001)],
    ids=["flat", "growing", "cancelling"],
)
def test_without_a_bound_it_is_k_max(credit):
    assert Decay(credit).bias(30) == math.inf
    assert Decay(credit).smallest(0.5, 2, 37) == 37


def test_credit_that_is_gone_within_the_window():
    found = Decay(Credit([1.0, 0.5, 0.25, *[0.0] * 17], [1.0, 1.5, *[1.75] * 18]))
    assert found.beta == 0
    assert [found.dropped(k) for k in (0, 1, 2, 3, 12, 50)] == [1.75, 0.75, 0.25, 0, 0, 0]
    assert [found.smallest(tolerance, 1, 20) for tolerance in (0.5, 0.2, 1e-9)] == [1, 2, 3]


@pytest.mark.parametrize("norms", [[1.0, 0.5], [0.0] * 9, [1.0, math.nan, 1.0, 1.0], [1.0, math.inf, 1.0]])
def test_what_says_nothing_is_told(norms):
    assert not Decay(Credit(norms, norms)).known


def apart(v):
    """A node of its own: what one leaf of a state owes to another of the same step isn't counted for both."""
    return v if not oracle.differentiable(v) else v.clone() if v.requires_grad else v.detach().requires_grad_()


def by_hand(case, probe: Probe, state, is_start=None, mask=None) -> tuple[list[float], list[float]]:
    """Norms and sums of a probe's definition by one autograd call a loss and lag."""
    problem = case.problem(state=state, is_start=is_start, mask=mask)
    dims = oracle.leaves(problem.dims(state))
    norms, totals = [0.0] * probe.lags, [torch.zeros(())] * probe.lags
    for s in range(probe.stop - probe.losses, probe.stop):
        befores, carried = [], state
        for t in range(probe.start, s + 1):
            carried = oracle.tree_map(apart, carried)
            befores.append(carried)
            if is_start is not None and is_start[t].any():
                carried = oracle.reset(problem, carried, is_start[t], case.zeros())
            out, carried = case.model(case.xs[t : t + 1], carried)
        loss = square(out, case.ys[s : s + 1])
        loss = (loss if mask is None else loss * mask[s : s + 1, :, None]).mean()
        so_far = 0.0
        for lag in range(probe.lags):
            before = oracle.leaves(befores[-1 - lag])
            floating = [(v, d) for v, d in zip(before, dims, strict=True) if oracle.differentiable(v)]
            grads = torch.autograd.grad(loss, [v for v, _ in floating], retain_graph=True, allow_unused=True)
            rows = []
            for g, (v, d) in zip(grads, floating, strict=True):
                g = torch.zeros_like(v) if g is None else g
                g = torch.view_as_real(g) if g.is_complex() else g
                rows.append(g.movedim(d, 0).flatten(1))
            rows = torch.cat(rows, 1)
            norms[lag] += rows.norm(dim=1).sum().item() / probe.losses
            so_far = so_far + rows.sum(0)
            totals[lag] = totals[lag] + so_far / probe.losses
    return norms, [total.norm().item() for total in totals]


class Asks:
    """A strategy that asks once and remembers the answer."""

    def __init__(self, probe: Probe):
        self.probe = probe

    def windows(self, upto, draw):
        upto(self.probe.stop)
        self.answer = yield self.probe
        end = upto(math.inf)
        yield bptt.Window(0, 0, end, end)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", ["plain", "resets", "mask"])
def test_credit_by_lag_is_autograds(name, more):
    case = make(name, 11)
    resets = some_resets(11, 2) if more == "resets" else None
    mask = ~some_resets(11, 2, seed=5) if more == "mask" else None
    asks = Asks(Probe(0, 10, 3))
    state = case.random_state()
    keywords = {"state_batch_dim": case.batch_dim, "initial_state": case.zeros}
    list(unroll(case, asks, state=state, is_start=resets, mask=mask, **keywords))
    norms, sums = by_hand(case, asks.probe, state, resets, mask)
    assert asks.answer.norms == pytest.approx(norms, rel=1e-11)
    assert asks.answer.sums == pytest.approx(sums, rel=1e-11)


def test_a_bound_on_cotangents_does_not_act_in_a_probe():
    case, asks, bounded = make("gru", 11), Asks(Probe(0, 10, 3)), Asks(Probe(0, 10, 3))
    list(unroll(case, asks))
    list(unroll(case, bounded, clip_cotangent=1e-3))
    assert bounded.answer.norms == pytest.approx(asks.answer.norms, rel=1e-12)


def fading(beta: float, T: int, dtype=F64):
    """s_t = β s_{t-1} + x_t and the loss s_t: φ_k = β^k exactly."""
    model = bptt.scan(lambda x, s: (beta * s + x, beta * s + x))
    return model, [(torch.ones(T, dtype=dtype, requires_grad=True), None)], torch.zeros((), dtype=dtype)


def sizes(strategy, T: int = 300, beta: float = 0.9):
    model, stream, zero = fading(beta, T)
    return list(bptt.unroll(model, lambda y, _: y, stream, zero, strategy=strategy))


def test_a_run_on_even_decay():
    updates = sizes(ADAPTIVE(tolerance=0.5, probe_every=3))
    assert {u.decision.k for u in updates} == {7}
    assert [(u.start, u.t0, u.t1) for u in updates[:3]] == [(0, 0, 7), (1, 7, 14), (8, 14, 21)]
    assert updates[-1].t1 == 300
    first = updates[0].decision
    assert (first.step, first.estimate) == (0, 7)
    assert first.decay == pytest.approx(0.9, rel=1e-12)
    assert first.bias == pytest.approx(0.9**7, rel=1e-3)
    assert first.norms == pytest.approx([0.9 ** (k + 1) for k in range(100)], rel=1e-12)
    assert [u.decision.step for u in updates[3:8]] == [0, 15, 15, 15, 36]


@pytest.mark.parametrize("tolerance", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("beta", [0.7, 0.9])
def test_a_run_finds_the_closed_form(beta, tolerance):
    want = max(2, exact_choice(beta, tolerance))
    assert sizes(ADAPTIVE(tolerance=tolerance), beta=beta)[0].decision.k == want


def test_bounds_and_streams_too_short_for_a_probe():
    assert {u.decision.k for u in sizes(ADAPTIVE(k_min=12, window=60))} == {12}
    assert {u.decision.k for u in sizes(ADAPTIVE(k_max=5))} == {5}
    assert {u.decision.k for u in sizes(ADAPTIVE(k_max=9), beta=1.01)} == {9}
    short = sizes(ADAPTIVE(k_max=9), T=2)
    assert [u.decision.k for u in short] == [9]
    assert math.isnan(short[0].decision.bias)
    assert sizes(ADAPTIVE(), T=60)[0].decision.k == 7  # fewer lags than asked for


def test_constant_lengths_are_truncated_bptt():
    """Gradients and parameters of a run with SGD steps in between, noise and buffers included."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.drop, self.norm = nn.GRU(3, 4), nn.Dropout(0.3), nn.BatchNorm1d(4)

        def forward(self, xs, state):
            hidden, state = self.gru(xs, state)
            return self.drop(self.norm(hidden.flatten(0, 1))).unflatten(0, hidden.shape[:2]), state

    def trained(strategy):
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        xs, ys = torch.randn(64, 2, 3), torch.randn(64, 2, 4)
        for update in bptt.unroll(net, square, [(xs, ys)], torch.zeros(1, 2, 4), state_batch_dim=1, strategy=strategy):
            optimizer.step()
            optimizer.zero_grad()
            last = update
        return [*net.parameters(), *net.buffers()], last

    (got, last), (want, other) = (
        trained(ADAPTIVE(k_min=6, k_max=6, probe_every=2, window=9)),
        trained(bptt.TruncatedBPTT(6, 11)),
    )
    assert last.decision.k == 6
    assert last.t0 == other.t0
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_plan_says_what_to_plan_instead():
    case = make("gru", 20)
    with pytest.raises(ValueError, match=r"TruncatedBPTT\(k1=K, k2=2 \* K - 1\)"):
        bptt.plan(case.model, square, (case.xs, case.ys), strategies=[ADAPTIVE()])


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": "half"}, "tolerance"),
        ({"k_min": 0}, "k_min"),
        ({"k_min": 10, "k_max": 9}, "k_max=10"),
        ({"probe_every": 0}, "probe_every"),
        ({"window": 2}, "window=3"),
        ({"window": 2.5}, "window"),
    ],
)
def test_arguments_that_cannot_be(wrong, names):
    refused(lambda: ADAPTIVE(**wrong), names, "AdaptiveTruncatedBPTT(")


def test_a_state_that_carries_no_credit():
    count = bptt.scan(lambda x, n: (x, n + 1))
    stream = [(torch.ones(9, requires_grad=True), None)]
    with pytest.raises(ValueError, match="no floating leaf"):
        list(bptt.unroll(count, lambda y, _: y, stream, torch.tensor(0), strategy=ADAPTIVE()))
