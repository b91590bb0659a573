"""What strategies say of themselves, and that each goes on from the progress of any of its windows."""

import itertools
import json
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bptt
from bptt.strategies import parse, says
from support.cases import make, square
from support.strategies_under_test import ALL

LENGTH = 40


def answered(windows, credits):
    """The windows of a generator, its probes answered in turn."""
    answer = None
    while True:
        try:
            item = next(windows) if answer is None else windows.send(answer)
        except StopIteration:
            return
        if isinstance(item, bptt.Probe):
            answer = next(credits)
            continue
        answer = None
        yield item


def credits(number):
    """Answers that fade at rates of their own, so that the lengths change."""
    for i in itertools.count(number):
        rate = (0.3, 0.9, 0.6, 0.97)[i % 4]
        norms = [rate**k for k in range(4)]
        yield bptt.Credit(norms, list(itertools.accumulate(norms)))


def draws(number):
    """A run's numbers in [0, 1), from the draw of that number on; one for each of two rows where asked."""
    g = torch.Generator().manual_seed(3)
    table = torch.rand(4 * LENGTH, 2, generator=g).tolist()
    counter = itertools.count(number)
    return lambda each_row=False: table[next(counter)] if each_row else table[next(counter)][0]


RESUMED = ALL | {
    "artbp-rows": bptt.ARTBP(bptt.ConstantLaw(3), per_row=True),
    "random": bptt.ARTBP(bptt.PolynomialLaw(mean_length=4), compensate=False),
}


@pytest.mark.parametrize("name", RESUMED)
def test_goes_on_after_any_window(name):
    strategy, drawn, asked = RESUMED[name], 0, 0

    def counted(each_row=False):
        nonlocal drawn
        drawn += 1
        return numbers(each_row)

    def answers():
        nonlocal asked
        for credit in credits(0):
            asked += 1
            yield credit

    numbers = draws(0)
    points, whole = [], []
    for window in answered(strategy.windows(lambda t: int(min(t, LENGTH)), counted), answers()):
        whole.append(window)
        points.append((json.dumps(window.progress), drawn, asked))
    assert whole[-1].stop == LENGTH
    for i, (progress, drawn_by_then, asked_by_then) in enumerate(points):
        rest = strategy.windows(lambda t: int(min(t, LENGTH)), draws(drawn_by_then), json.loads(progress))
        found = list(answered(rest, credits(asked_by_then)))
        assert repr(found) == repr(whole[i + 1 :])  # decisions hold NaN, which is unlike itself
        assert [json.dumps(w.progress) for w in found] == [p for p, *_ in points[i + 1 :]]


KINDS = {
    "full": ("exact", True, True),
    "tbptt-2-5": ("biased", False, True),
    "adaptive": ("biased", False, False),
    "artbp-constant": ("unbiased", False, True),
    "artbp-rows": ("unbiased", True, True),
    "random": ("biased", False, True),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_strategy_says_of_itself(name):
    strategy = RESUMED[name]
    assert (strategy.kind, strategy.sequences, strategy.lengths_known) == KINDS[name]


@pytest.mark.parametrize("name", ["full", "tbptt-1-1", "tbptt-2-5", "tbptt-4-99", "tbptt-99", "artbp-rows"])
def test_reach_is_the_length_of_the_longest_window(name):
    strategy, steps = RESUMED[name], 3 * LENGTH
    windows = list(strategy.windows(lambda t: int(min(t, steps)), draws(0)))
    assert max(w.stop - w.start for w in windows) == min(strategy.reach, steps)


def test_reach_of_windows_that_are_drawn_or_found():
    """Drawn: the mean, as far as the law says one; found: that of the largest K."""
    assert bptt.ARTBP(bptt.ConstantLaw(12)).reach == 12
    assert bptt.ARTBP(bptt.ConstantLaw(12), every=20).reach == 20
    assert bptt.ARTBP(lambda k: 0.1).reach is None
    strategy = RESUMED["adaptive"]
    never = (bptt.Credit([1.0] * 4, [1.0] * 4) for _ in itertools.count())  # credit that doesn't fade
    windows = answered(strategy.windows(lambda t: int(min(t, 200)), None), never)
    assert max(w.stop - w.start for w in windows) == strategy.reach == 17


def test_what_one_that_inherits_nothing_says():
    class Mine:
        kind = "unbiased"

    said = [says(Mine(), what) for what in ("kind", "sequences", "lengths_known", "reach", "spec")]
    assert said == ["unbiased", False, True, None, None]


@given(
    st.one_of(
        st.just("full"),
        st.integers(1, 10**6).map(lambda k: f"tbptt:{k}"),
        st.tuples(st.integers(1, 999), st.integers(0, 999)).map(lambda k: f"tbptt:{k[0]}:{k[0] + k[1]}"),
        st.floats(1.001, 1e6).map(lambda n: f"artbp:{n!r}"),
        st.integers(2, 999).map(lambda n: f"random:{n}"),
        st.floats(1e-3, 10).map(lambda x: f"adaptive:{x!r}"),
    )
)
def test_a_text_and_back(text):
    strategy = parse(text)
    assert parse(strategy.spec) == strategy


@pytest.mark.parametrize(
    "strategy",
    [
        bptt.ARTBP(lambda k: 0.1),
        bptt.ARTBP(bptt.ConstantLaw(4)),
        bptt.ARTBP(bptt.PolynomialLaw(alpha=4)),
        bptt.ARTBP(every=2),
        bptt.ARTBP(per_row=True),
        bptt.AdaptiveTruncatedBPTT(0.5, k_max=50),
    ],
    ids=["function", "constant", "alpha", "every", "per_row", "k_max"],
)
def test_no_text_where_none_gives_it_back(strategy):
    assert strategy.spec is None


@pytest.mark.parametrize(
    "text", ["", "full:1", "tbptt", "tbptt:0", "tbptt:5:3", "tbptt:2.5", "artbp:x", "artbp:inf", "zen", 7]
)
def test_texts_that_name_none(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse(text)


def test_mean_needs_a_constant_at_the_call():
    @dataclass(frozen=True)
    class Halves(bptt.Strategy):
        def windows(self, upto, draw, progress=None):
            yield from bptt.TruncatedBPTT(5).windows(upto, draw, progress)

    case = make("gru", 10)
    with pytest.raises(ValueError, match='reduction="sum"'):
        bptt.unroll(case.model, square, [(case.xs, case.ys)], strategy=Halves())
    updates = list(bptt.unroll(case.model, square, [(case.xs, case.ys)], strategy=Halves(), reduction="sum"))
    assert [(u.t0, u.t1) for u in updates] == [(0, 5), (5, 10)]


def test_a_strategy_that_gives_no_windows():
    class Empty(bptt.Strategy):
        pass

    with pytest.raises(TypeError, match="windows"):
        Empty()
