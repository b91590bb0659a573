"""The estimates and their intervals: against the plain formulas, and against what they promise."""

import math

import pytest
import torch

from bptt.analysis.estimates import Draws, student
from support.cases import F64
from support.runs import seed


def found(samples, exact):
    """Of draws (n, d), as two parameters of which one has a single entry."""
    draws = Draws([exact[:1], exact[1:]])
    for sample in samples:
        draws.add([sample[:1], sample[1:]])
    return draws.deviations()


def test_quantiles_of_students_distribution():
    """Two-sided 99 %: the printed tables, and at many degrees of freedom the normal 2.5758."""
    table = {1: 63.6567, 2: 9.9248, 3: 5.8409, 4: 4.6041, 5: 4.0321, 10: 3.1693, 29: 2.7564, 60: 2.6603, 120: 2.6174}
    for freedom, value in table.items():
        assert student(freedom) == pytest.approx(value, abs=6e-5)
    assert student(20_000) == pytest.approx(2.5758, abs=3e-4)


@pytest.mark.parametrize("n", [3, 4, 50])
def test_the_plain_formulas(n):
    samples, exact = torch.randn(n, 4, generator=seed(n), dtype=F64) + 3, torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=F64)
    for part, got in zip([slice(1), slice(1, 4), slice(4)], found(samples, exact), strict=True):
        g, e = samples[:, part], exact[part]
        norm, drift = e.norm().item(), (g.mean(0) - e).norm().item()
        variance = g.var(0).sum().item()
        along = (g - e) @ e / norm**2
        cosine = g @ e / (g.norm(dim=1) * norm)
        reach = student(n - 1) * (variance / n) ** 0.5
        terms = [(1 - 1 / i) * (g[i - 1] - g[: i - 1].mean(0)).square().sum().item() for i in range(2, n + 1)]
        half = student(n - 2) * torch.tensor(terms, dtype=F64).std().item() / (n - 1) ** 0.5
        assert sum(terms) / (n - 1) == pytest.approx(variance, rel=1e-12)
        limits = (variance, max(variance - half, 0), variance + half)
        assert got.variance == pytest.approx([limit / norm**2 for limit in limits], rel=1e-10)
        assert got.bias.value == pytest.approx(max(drift**2 - variance / n, 0) ** 0.5 / norm, rel=1e-12)
        assert got.bias[1:] == pytest.approx((max(drift - reach, 0) / norm, (drift + reach) / norm), rel=1e-12)
        for estimate, values in ((got.signed_bias, along), (got.cosine, cosine)):
            half = student(n - 1) * values.std().item() / n**0.5
            middle = values.mean().item()
            assert estimate == pytest.approx((middle, middle - half, middle + half), rel=1e-10, abs=1e-12)


def test_intervals_cover_what_they_promise():
    """Experiments of 40 draws, independent and correlated entries, with a bias and without."""
    generator, n, runs = seed(2), 40, 250
    mix = torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [1, 0.1, 0.01]], dtype=F64)  # nearly one direction: the hardest
    for transform in (torch.eye(3, dtype=F64), mix):
        exact = torch.tensor([1.0, 2.0, -2.0], dtype=F64)
        spread = transform.square().sum().item() / 9
        for shift in (torch.zeros(3, dtype=F64), torch.tensor([0.3, 0.0, 0.4], dtype=F64)):
            wanted = {"bias": shift.norm().item() / 3, "signed_bias": (shift @ exact).item() / 9, "variance": spread}
            hits = dict.fromkeys(wanted, 0)
            for _ in range(runs):
                noise = torch.randn(n, 3, generator=generator, dtype=F64) @ transform.T
                whole = found(exact + shift + noise, exact)[-1]
                for name, value in wanted.items():
                    _, low, high = getattr(whole, name)
                    hits[name] += low <= value <= high
            assert hits["bias"] >= 0.96 * runs
            assert hits["signed_bias"] >= 0.96 * runs
            assert hits["variance"] >= 0.92 * runs  # skew: 99 % holds for many draws


def test_terms_of_the_variance_spread_as_its_estimate_does():
    """s² from n draws deviates by √((κ - 1) / n): what the interval is made of, here for exponential draws, κ = 9."""
    n = 20_000
    samples = torch.empty(n, 1, dtype=F64).exponential_(generator=seed(8))
    got = found(torch.cat([samples, samples.new_zeros(n, 1)], 1), torch.ones(2, dtype=F64))[0].variance
    half = (got.high - got.low) / 2
    assert half == pytest.approx(2.5758 * math.sqrt(8 / n), rel=0.15)  # κ of 20,000 draws
    assert got.low < 1 < got.high


def test_a_mean_that_is_unbiased_for_the_square_of_the_bias():
    """‖m - g*‖² - s²/n on average: where nothing is biased, the estimate is 0 half of the time or more."""
    zeros = 0
    for number in range(100):
        samples = torch.randn(10, 2, generator=seed(number), dtype=F64) + 1
        zeros += found(samples, torch.ones(2, dtype=F64))[-1].bias.value == 0
    assert 50 <= zeros < 90
