"""`compare` against closed forms, enumeration and the engine's own gradients."""

import itertools
import math

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import F64, make, some_resets, square
from support.runs import engine, gradient, seed, start
from support.strategies_under_test import FIXED, RANDOM, STRATEGIES, scripted

A = 0.9
LAWS = {"polynomial": bptt.PolynomialLaw(alpha=3, mean_length=4), "constant": bptt.ConstantLaw(mean_length=4)}


class Scalar:
    """s_t = a s_{t-1} + x_t with l_t = (s_t - y_t)², written out: states, slopes l'(s_t), dL/da through K_t terms."""

    def __init__(self, T):
        g = seed(3)
        self.T, self.xs, self.ys = T, *torch.randn(2, T, generator=g, dtype=F64)
        self.a, self.s0 = torch.tensor(A, dtype=F64, requires_grad=True), torch.tensor(0.7, dtype=F64)
        self.states = [self.s0.item()]  # states[t] is the one before step t
        for x in self.xs.tolist():
            self.states.append(A * self.states[-1] + x)
        self.slopes = [2 * (s - y) for s, y in zip(self.states[1:], self.ys.tolist(), strict=True)]

    def gradient(self, terms):
        """Σ_t l'(s_t) Σ_{j=1..terms(t)} a^{j-1} s_{t-j}."""
        return sum(
            slope * sum(A ** (j - 1) * self.states[t + 1 - j] for j in range(1, terms(t) + 1))
            for t, slope in enumerate(self.slopes)
        )

    def moments(self, law, order=4):
        """E G^m, m = 0..order, of ARTBP's gradient: E[G^m; age k], the influence being S_t(k) whatever came before."""
        ages, influence = [[1.0] + [0.0] * order], [self.states[0]]
        for t, slope in enumerate(self.slopes):
            ages = [_shifted(moments, slope * s) for moments, s in zip(ages, influence, strict=True)]
            hazards = [law(k) for k in range(1, t + 2)]
            cut = [sum(p * moments[m] for p, moments in zip(hazards, ages, strict=True)) for m in range(order + 1)]
            ages = [cut, *([(1 - p) * v for v in moments] for p, moments in zip(hazards, ages, strict=True))]
            s = self.states[t + 1]
            influence = [s, *(s + A * before / (1 - p) for p, before in zip(hazards, influence, strict=True))]
        return [sum(moments[m] for moments in ages) for m in range(order + 1)]

    def compare(self, strategies, **more):
        model = bptt.scan(lambda x, s: (self.a * s + x, self.a * s + x))
        loss = lambda outputs, targets: (outputs - targets) ** 2  # noqa: E731
        more.setdefault("params", [self.a])
        return bptt.compare(model, loss, (self.xs, self.ys), self.s0, strategies=strategies, **more)


def _shifted(moments, by):
    """E (G + by)^m from E G^m."""
    return [sum(math.comb(m, j) * by ** (m - j) * moments[j] for j in range(m + 1)) for m in range(len(moments))]


def compared(case, strategies, data=None, **more):
    keywords = start(case) | {"generator": seed()} | more
    return bptt.compare(
        keywords.pop("model", engine(case)),
        keywords.pop("loss", square),
        data or (case.xs, case.ys),
        strategies=strategies,
        **keywords,
    )


@pytest.mark.parametrize("T", [1, 2, 9, 50])
def test_closed_form_of_every_truncation(T):
    scalar = Scalar(T)
    pairs = [(1, 1), (1, 3), (1, 10), (3, 3), (10, 10), (2, 5), (7, 30), (T, T), (5, T + 4)]
    found = scalar.compare([bptt.FullBPTT(), *(bptt.TruncatedBPTT(k1, k2) for k1, k2 in pairs)])
    full = scalar.gradient(lambda t: t + 1)
    assert found.steps == T
    assert found.norm == found.norms["params[0]"] == pytest.approx(abs(full), rel=1e-12)
    for entry, (k1, k2) in zip(found.entries, [(T, T), *pairs], strict=True):
        got = scalar.gradient(lambda t: t - max(0, t // k1 * k1 - (k2 - k1)) + 1)  # noqa: B023
        signed = (got - full) / full
        assert entry.draws == 1
        assert entry.signed_bias == pytest.approx((signed,) * 3, abs=1e-10)
        assert entry.bias == pytest.approx((abs(signed),) * 3, abs=1e-10)
        assert entry.cosine == pytest.approx((math.copysign(1, got * full),) * 3, abs=1e-12)
        assert entry.variance == (0, 0, 0)
        assert entry.parameters.keys() == {"params[0]"}
        assert entry.parameters["params[0]"].bias == entry.bias
        if k2 >= T + k1 - 1:
            assert entry.bias.value < 1e-12


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.thin
def test_first_and_second_moment_over_all_patterns(law):
    """The engine's gradient of each of the 2^8 patterns, as `compare` reports it, against the recursion over ages."""
    scalar = Scalar(9)
    patterns = [set(c) for n in range(9) for c in itertools.combinations(range(1, 9), n)]
    probabilities = [oracle.randomised(law, 1, 9, cuts)[1] for cuts in patterns]
    found = scalar.compare([scripted(law, 1, cuts) for cuts in patterns])
    full = scalar.gradient(lambda t: t + 1)
    gradients = [full * (1 + entry.signed_bias.value) for entry in found.entries]
    moments = scalar.moments(law)
    for order in range(5):
        total = sum(p * g**order for p, g in zip(probabilities, gradients, strict=True))
        assert total == pytest.approx(moments[order], rel=1e-12)
    assert moments[1] == pytest.approx(full, rel=1e-12)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.thin
def test_sample_variance_is_the_exact_one_within_its_own_deviation(law):
    scalar, n = Scalar(20), 400
    (entry,) = scalar.compare([bptt.ARTBP(law=law)], draws=n, generator=seed(1)).entries
    full, moments = scalar.gradient(lambda t: t + 1), scalar.moments(law)
    central = _shifted(moments, -moments[1])
    kurtosis = central[4] / central[2] ** 2
    assert entry.draws == n
    assert moments[1] == pytest.approx(full, rel=1e-12)
    assert abs(entry.variance.value * full**2 / central[2] - 1) < 4 * ((kurtosis - 1) / n) ** 0.5
    assert entry.variance.low < central[2] / full**2 < entry.variance.high
    assert entry.signed_bias.low < 0 < entry.signed_bias.high
    assert entry.bias.low == 0


class Coin:
    """The full gradient or that of single steps, by one draw a run: everything about it is known."""

    def windows(self, upto, draw):
        chosen = bptt.FullBPTT() if draw() < 0.5 else bptt.TruncatedBPTT(1)
        return chosen.windows(upto, draw)

    def divisor(self, window):
        raise AssertionError("reduction is sum")


@pytest.mark.parametrize("name", ["gru", "complex"])
def test_a_biased_random_strategy(name):
    """g = g* + X d with X = 0 or 1: every estimate follows from the share f of draws with X = 1."""
    n, case = 50, make(name, T=6)
    full, short, coin = compared(case, [bptt.FullBPTT(), bptt.TruncatedBPTT(1), Coin()], draws=n).entries
    assert full.bias.value < 1e-14
    assert (full.draws, short.draws, coin.draws) == (1, 1, n)
    parts = [(short, coin), *((short.parameters[p], coin.parameters[p]) for p in coin.parameters)]
    for d, got in (pair for pair in parts if pair[0].bias.value > 0):
        f = got.signed_bias.value / d.signed_bias.value
        assert round(f * n) == pytest.approx(f * n, abs=1e-8)
        assert 0.2 < f < 0.8
        size = d.bias.value
        variance = f * (1 - f) * n / (n - 1)
        assert got.variance.value == pytest.approx(variance * size**2, rel=1e-10)
        assert got.bias.value == pytest.approx((f * f - variance / n) ** 0.5 * size, rel=1e-10)
        assert got.cosine.value == pytest.approx(1 - f + f * d.cosine.value, rel=1e-10)
        assert 0 < got.bias.low < 0.5 * size < got.bias.high
        assert got.variance.low < 0.25 * size**2 < got.variance.high
    assert coin.updates == pytest.approx(1 + 5 * f)


@pytest.mark.parametrize("name", ["gru2", "dict", "named", "complex"])
@pytest.mark.parametrize("resets", [False, True], ids=["no resets", "resets"])
@pytest.mark.thin
def test_each_parameter_against_the_engines_gradients(name, resets):
    case = make(name, T=8)
    data = (case.xs, case.ys)
    more = {}
    if resets:
        more = {"is_start": some_resets(8, 2), "mask": ~some_resets(8, 2, seed=5)}
        data = bptt.Chunk(case.xs, case.ys, **more)
    exact, _ = gradient(case, bptt.FullBPTT(), **more)
    found = compared(case, [STRATEGIES[s] for s in FIXED], data)
    names = [key for key, _ in engine(case).named_parameters()]
    assert list(found.norms) == names
    for strategy, entry in zip(FIXED, found.entries, strict=True):
        assert entry.strategy is STRATEGIES[strategy]
        got, _ = gradient(case, STRATEGIES[strategy], **more)
        zeros = [torch.zeros_like(p) for p in case.parameters()]
        pairs = [(z if g is None else g, z if e is None else e) for g, e, z in zip(got, exact, zeros, strict=True)]
        for key, (g, e) in zip(names, pairs, strict=True):
            assert found.norms[key] == pytest.approx(e.norm().item(), rel=1e-12)
            part = entry.parameters[key]
            assert part.bias.value == pytest.approx(((g - e).norm() / e.norm()).item(), rel=1e-9, abs=1e-13)
            cosine = (g.conj() * e).real.sum() / (g.norm() * e.norm())
            assert part.cosine.value == pytest.approx(cosine.item(), abs=1e-12, nan_ok=True)
        whole = sum((g - e).norm() ** 2 for g, e in pairs) / sum(e.norm() ** 2 for _, e in pairs)
        assert entry.bias.value == pytest.approx(whole.item() ** 0.5, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("name", RANDOM)
def test_draws_are_the_engines_from_one_generator(name):
    case, generator, n = make("gru", 12), seed(5), 6
    runs = [gradient(case, STRATEGIES[name], generator=generator) for _ in range(n)]
    draws = torch.stack([torch.cat([g.flatten() for g in grads]) for grads, _ in runs])
    exact = torch.cat([g.flatten() for g in gradient(case, bptt.FullBPTT())[0]])
    one, two = (
        compared(case, strategies, generator=seed(5), draws=n).entries[-1]
        for strategies in ([STRATEGIES[name]], [bptt.ARTBP(), bptt.FullBPTT(), STRATEGIES[name]])
    )
    variance = (draws - draws.mean(0)).square().sum().item() / (n - 1) / exact.norm().item() ** 2
    assert one.variance.value == pytest.approx(variance, rel=1e-9)
    assert one.updates == sum(len(updates) for _, updates in runs) / n
    assert one.memory_bytes == max(u.memory_bytes for _, updates in runs for u in updates)
    assert (one.variance, one.bias, one.cosine) == (two.variance, two.bias, two.cosine)  # whatever else is compared


def test_steps_and_bytes():
    case = make("gru", 9)
    strategies = [bptt.FullBPTT(), bptt.TruncatedBPTT(2, 5), bptt.TruncatedBPTT(3)]
    stored, replayed = (
        compared(case, strategies, memory=memory).entries for memory in (None, bptt.Checkpoints(slots=2, segment=1))
    )
    for entry, updates, steps in zip(stored, (1, 5, 3), (9, 2 + 4 + 5 + 5 + 4, 9), strict=True):
        assert (entry.updates, entry.forward_steps, entry.backward_steps) == (updates, steps, steps)
        assert entry.seconds > 0
    for one, two in zip(stored, replayed, strict=True):
        assert two.forward_steps > one.forward_steps
        assert two.backward_steps == one.backward_steps
        assert two.memory_bytes < one.memory_bytes
        assert two.bias == pytest.approx(one.bias, abs=1e-12)


def test_a_random_strategy_under_a_budget():
    case = make("gru", 12)
    one, two = (
        compared(case, [STRATEGIES["artbp-polynomial-3"]], draws=5, memory=m).entries[0] for m in (None, "2KiB")
    )
    assert two.variance == pytest.approx(one.variance, rel=1e-9)
    assert two.bias == pytest.approx(one.bias, rel=1e-9, abs=1e-12)


def test_time_on_another_axis():
    case = make("gru", 7)
    turned = nn.GRU(3, 4, dtype=F64, batch_first=True)
    turned.load_state_dict(case.model.state_dict())
    one = compared(case, [bptt.TruncatedBPTT(2)])
    two = bptt.compare(
        turned,
        square,
        (case.xs.transpose(0, 1), case.ys.transpose(0, 1)),
        strategies=[bptt.TruncatedBPTT(2)],
        time_dim=1,
    )
    assert two.steps == 7
    assert two.entries[0].bias == pytest.approx(one.entries[0].bias, rel=1e-12)


def test_as_a_table():
    case = make("gru", 6)
    found = compared(case, [bptt.TruncatedBPTT(2), bptt.ARTBP(law=bptt.ConstantLaw(3))], draws=3)
    head, fixed, random = str(found.table()).splitlines()
    assert str(found).startswith(f"{head}\n{fixed}\n{random}\nexact gradient: none of these\n")
    names = "strategy draws bias cosine variance updates forward backward memory time"
    assert " ".join(head.split()) == names
    assert len(head) == len(fixed) == len(random)
    assert fixed.startswith("tbptt:2 (biased)")
    assert "[" not in fixed
    assert random.count("[") == 3
    assert "ms" in fixed
    assert "B " in fixed
