"""The truncation laws as data: their values, mean windows and second moments (facts from Tallec & Ollivier 2017)."""

import dataclasses
import math

import pytest

import bptt

LAWS = [bptt.PolynomialLaw(alpha=a, mean_length=m) for a in (3, 4, 6) for m in (10, 16, 50)] + [
    bptt.PolynomialLaw(alpha=1.5, mean_length=7),
    bptt.PolynomialLaw(alpha=2.25, mean_length=1.3),
    bptt.PolynomialLaw(alpha=9, mean_length=1000),
]
CONSTANT = [bptt.ConstantLaw(mean_length=m) for m in (1.01, 2, 16, 50, 1000)]


def survival(law, n: int) -> list[float]:
    """S(0..n): the chance that a window outlives step k."""
    s = [1.0]
    for k in range(1, n + 1):
        s.append(s[-1] * (1.0 - law(k)))
    return s


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_polynomial_values(law):
    for k in (1, 2, 3, 10, 1000):
        assert law(k) == pytest.approx(law.alpha / ((law.alpha - 1) * law.mean_length + k), rel=1e-15)
    assert law(1) < 1


@pytest.mark.parametrize("law", CONSTANT, ids=str)
def test_constant_values(law):
    assert {law(k) for k in (1, 2, 3, 10, 1000)} == {1 / law.mean_length}


def test_table_of_the_defaults():
    law = bptt.PolynomialLaw()
    assert (law.alpha, law.mean_length) == (3, 50)
    assert [law(k) for k in (1, 2, 50)] == pytest.approx([3 / 101, 3 / 102, 3 / 150], rel=1e-15)
    assert bptt.ConstantLaw().mean_length == 50
    assert bptt.ARTBP().law == law
    assert bptt.ARTBP().every == 1


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 17, 300, 10_000])
def test_mean_window_of_the_polynomial_law(law, n):
    """Σ_{k<n} S(k) + S(n) ((α-1) T0 + n) / (α-1) = T0 for every n: no sampling, no infinite sum."""
    s = survival(law, n)
    a, mean = law.alpha, law.mean_length
    assert math.fsum(s[:n]) + s[n] * ((a - 1) * mean + n) / (a - 1) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("law", CONSTANT, ids=str)
@pytest.mark.parametrize("n", [1, 2, 17, 300, 10_000])
def test_mean_window_of_the_constant_law(law, n):
    s = survival(law, n)
    assert math.fsum(s[:n]) + s[n] * law.mean_length == pytest.approx(law.mean_length, rel=1e-12)


def never_cut(strategy, length: int):
    """The one window of a run in which no draw cuts."""
    (window,) = strategy.windows(lambda t: min(t, length), lambda: 1.0 - 1e-16)
    return window


@pytest.mark.parametrize(
    ("law", "moments"),
    [
        (bptt.ConstantLaw(mean_length=50), {50: 2.7, 200: 57, 500: 2.4e4}),
        (bptt.PolynomialLaw(alpha=3, mean_length=50), {50: 3.4, 200: 28, 500: 222}),
    ],
    ids=str,
)
@pytest.mark.parametrize("every", [1, 10])
def test_second_moment_of_the_weight_at_a_lag(law, moments, every):
    """E[(Π w)²] = P(survive) (Π w)² = 1 / P(survive), the published figures, from the windows' own weights."""
    window = never_cut(bptt.ARTBP(law=law, every=every), 501)
    s = survival(law, 500)
    for lag, moment in moments.items():
        product = math.prod(w for t, w in window.weights.items() if t <= lag)
        assert product == pytest.approx(1 / s[lag], rel=1e-11)
        assert s[lag] * product**2 == pytest.approx(moment, rel=0.03)


def test_laws_are_frozen_values():
    law = bptt.ConstantLaw(mean_length=20)
    assert law == bptt.ConstantLaw(20)
    assert hash(law) == hash(bptt.ConstantLaw(20))
    with pytest.raises(dataclasses.FrozenInstanceError):
        law.mean_length = 3
    assert {f.name for f in dataclasses.fields(law)} == {"mean_length"}
    assert {f.name for f in dataclasses.fields(bptt.PolynomialLaw())} == {"alpha", "mean_length"}


@pytest.mark.parametrize("mean_length", [1, 0.5, 0, -3, math.inf, math.nan])
def test_mean_length_must_exceed_one(mean_length):
    for law in (bptt.ConstantLaw, bptt.PolynomialLaw):
        with pytest.raises(ValueError, match="mean_length"):
            law(mean_length=mean_length)


@pytest.mark.parametrize("alpha", [1, 0, -1, math.inf, math.nan])
def test_alpha_must_exceed_one(alpha):
    with pytest.raises(ValueError, match="alpha"):
        bptt.PolynomialLaw(alpha=alpha)
