"""ARTBP: its windows and weights as data, and its expectation, by enumeration of all patterns of cuts."""

import itertools

import pytest
import torch

import bptt
from support import oracle
from support.cases import make, some_resets, square
from support.runs import check, expected, gradient, seed, unroll
from support.strategies_under_test import RANDOM, STRATEGIES, scripted

LAWS = {
    "constant": bptt.ConstantLaw(mean_length=3),
    "polynomial": bptt.PolynomialLaw(alpha=3, mean_length=4),
    "function": lambda k: 0.4 * (k % 3 == 1) + 0.1,
}


def patterns(every: int, length: int):
    boundaries = range(every, length, every)
    return [set(c) for n in range(len(boundaries) + 1) for c in itertools.combinations(boundaries, n)]


def windows_of(law, every: int, length: int, cuts, asked=None):
    boundaries = itertools.count(every, every)

    def upto(t):
        if asked is not None:
            asked.append(t)
        return min(t, length)

    def draw():
        b = next(boundaries)
        assert b <= length, "a draw beyond the stream's end"
        return 0.0 if b in cuts else 1.0 - 1e-16

    return list(bptt.ARTBP(law=law, every=every).windows(upto, draw))


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_windows_and_weights_for_every_pattern(law, every):
    length = 8 if every == 1 else 13
    for cuts in patterns(every, length):
        got = windows_of(law, every, length, cuts)
        want, _ = oracle.randomised(law, every, length, cuts)
        assert [(w.start, w.first, w.stop) for w in got] == [(w.start, w.first, w.stop) for w in want]
        assert [w.keep for w in got[:-1]] == [w.keep for w in want[:-1]]
        for g, w in zip(got, want, strict=True):
            inside = {t: v for t, v in g.weights.items() if g.start < t < g.stop}
            assert inside == pytest.approx(w.weights, rel=1e-14)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("every", [1, 3])
def test_the_draw_and_the_factor_use_the_same_k(law, every):
    """The probability of a cut, found by bisection on the draw, and the weight where there is none: w = 1/(1-p)."""
    length = 4 * every + 1
    for n in range(1, 5):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            draws = itertools.chain([1.0 - 1e-16] * (n - 1), [middle], itertools.repeat(1.0 - 1e-16))
            strategy = bptt.ARTBP(law=law, every=every)
            first = next(iter(strategy.windows(lambda t: min(t, length), lambda draws=draws: next(draws))))
            if first.stop == n * every:
                low = middle
            else:
                high, weight = middle, first.weights[n * every]
        assert weight == pytest.approx(1 / (1 - high), rel=1e-12)


def test_probabilities_of_the_patterns_sum_to_one():
    for law, every in itertools.product(LAWS.values(), (1, 3)):
        total = sum(oracle.randomised(law, every, 11, cuts)[1] for cuts in patterns(every, 11))
        assert total == pytest.approx(1, rel=1e-13)


def enumerate_patterns(case, law, every, tensors=None, **more):
    """The exact expectation of the engine's gradient over all patterns of cuts."""
    tensors = case.parameters() if tensors is None else tensors
    length, mean, total = len(case.xs), None, 0.0
    for cuts in patterns(every, length):
        probability = oracle.randomised(law, every, length, cuts)[1]
        grads, updates = gradient(case, scripted(law, every, cuts), tensors, **more)
        assert [u.t1 for u in updates] == [*sorted(cuts), length]
        mean = [torch.zeros_like(g) for g in grads] if mean is None else mean
        mean = [m + probability * g for m, g in zip(mean, grads, strict=True)]
        total += probability
    assert total == pytest.approx(1, rel=1e-13)
    return mean


CHUNKS = {"whole": (), "uneven": (1, 4, 5), "single steps": range(12)}


@pytest.mark.parametrize("law", list(LAWS.values())[:2], ids=list(LAWS)[:2])
@pytest.mark.parametrize(("every", "length"), [(1, 7), (3, 14)])
@pytest.mark.parametrize("cuts", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("resets", [False, True], ids=["no resets", "resets"])
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 2)], ids=["stored", "replayed"])
@pytest.mark.thin
def test_expectation_over_all_patterns_is_the_full_gradient(law, every, length, cuts, resets, memory):
    case = make("gru", length, hidden=3)
    is_start = some_resets(length, 2) if resets else None
    got = enumerate_patterns(case, law, every, cuts=cuts, is_start=is_start, memory=memory)
    oracle.assert_close(got, expected(case, bptt.FullBPTT(), is_start=is_start))


@pytest.mark.parametrize("name", ["lstm2", "dict", "named", "complex"])
@pytest.mark.parametrize(("every", "length"), [(1, 5), (3, 10)])
def test_expectation_for_other_recurrences(name, every, length):
    case = make(name, length, hidden=2)
    is_start, mask = some_resets(length, 2), ~some_resets(length, 2, seed=5)
    more = {"is_start": is_start, "mask": mask, "cuts": (2, 5)}
    got = enumerate_patterns(case, LAWS["function"], every, **more)
    oracle.assert_close(got, expected(case, bptt.FullBPTT(), is_start=is_start, mask=mask))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(1, 1)], ids=["stored", "replayed"])
def test_expectation_for_a_learned_initial_state(every, memory):
    """Rows may reset where the stream is cut and where it isn't: the initial state's gradient is exact in the mean."""
    length = 6 if every == 1 else 11
    case = make("gru", length, hidden=3)
    h0 = torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True)
    tensors, initial = [h0, *case.parameters()], lambda: h0.expand(1, 2, 3)
    is_start = some_resets(length, 2, rate=0.4)
    got = enumerate_patterns(
        case, LAWS["constant"], every, tensors, is_start=is_start, memory=memory, initial_state=initial
    )
    want = expected(case, bptt.FullBPTT(), tensors=tensors, is_start=is_start, initial=initial)
    oracle.assert_close(got, want)


@pytest.mark.deep
def test_enumeration_by_seeds_alone():
    """The same by the engine's own draws: seeds until every pattern was seen, the pattern read off the yields."""
    case, law = make("rnn", 6, hidden=2), LAWS["polynomial"]
    seen: dict = {}
    for number in range(4000):
        grads, updates = gradient(case, bptt.ARTBP(law=law), generator=seed(number))
        seen.setdefault(frozenset(u.t1 for u in updates[:-1]), grads)
        if len(seen) == 2**5:
            break
    assert len(seen) == 2**5, "some pattern never comes up"
    mean = [torch.zeros_like(p) for p in case.parameters()]
    for cuts, grads in seen.items():
        probability = oracle.randomised(law, 1, 6, cuts)[1]
        mean = [m + probability * g for m, g in zip(mean, grads, strict=True)]
    oracle.assert_close(mean, expected(case, bptt.FullBPTT()))


def test_frequencies_of_the_cuts_follow_the_law():
    """8,000 windows of the engine's own draws: hazards within five standard deviations."""
    law, generator, lengths = LAWS["polynomial"], seed(7), []
    ends = []
    strategy = bptt.ARTBP(law=law)

    def draw():
        return float(torch.rand((), generator=generator, dtype=torch.float64))

    for window in itertools.islice(strategy.windows(lambda t: t, draw), 8000):
        lengths.append(window.stop - window.start)
        ends.append(window.stop)
    assert ends == list(itertools.accumulate(lengths))
    for k in (1, 2, 3, 5):
        alive, died = sum(n >= k for n in lengths), sum(n == k for n in lengths)
        p = law(k)
        assert abs(died - p * alive) <= 5 * (alive * p * (1 - p)) ** 0.5


def unwind(strategy, length, number, cuts=()):
    case = make("rnn", length, hidden=2)
    grads, updates = gradient(case, strategy, generator=seed(number), cuts=cuts)
    return grads, [u.t1 for u in updates]


@pytest.mark.parametrize("name", RANDOM)
def test_same_seed_same_run(name):
    strategy = STRATEGIES[name]
    runs = [unwind(strategy, 40, 3) for _ in range(2)]
    assert runs[0][1] == runs[1][1]
    oracle.assert_close(runs[0][0], runs[1][0], 0.0)
    others = [unwind(strategy, 40, n)[1] for n in range(4, 9)]
    assert any(other != runs[0][1] for other in others)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("cuts", [(1,), (5, 11, 12, 30), tuple(range(40))])
def test_cuts_do_not_depend_on_chunks(name, cuts):
    whole, cut = unwind(STRATEGIES[name], 40, 5), unwind(STRATEGIES[name], 40, 5, cuts)
    assert cut[1] == whole[1]
    oracle.assert_close(cut[0], whole[0])


@pytest.mark.parametrize("name", RANDOM)
def test_resets_and_data_leave_the_cuts_alone(name):
    strategy, case = STRATEGIES[name], make("gru", 40, hidden=2)
    plain = [u.t1 for u in unroll(case, strategy, generator=seed(5))]
    reset = [u.t1 for u in unroll(case, strategy, generator=seed(5), is_start=some_resets(40, 2))]
    assert plain == reset == unwind(strategy, 40, 5)[1]


@pytest.mark.parametrize("name", RANDOM)
def test_gradient_given_the_cuts(name):
    """Longer runs than can be enumerated: whatever was cut, the gates are those of the definition."""
    for number in range(5):
        check(make("lstm", 30, hidden=3), STRATEGIES[name], generator=seed(number), cuts=(4, 17), rtol=2e-12)


def test_a_cut_at_every_boundary_and_at_none():
    case = make("gru", 6)
    grads, updates = gradient(case, bptt.ARTBP(law=lambda k: 0.0))
    assert [u.t1 for u in updates] == [6]
    oracle.assert_close(grads, expected(case, bptt.FullBPTT()))
    grads, updates = gradient(case, scripted(lambda k: 0.5, 1, set(range(6))))
    assert [u.t1 for u in updates] == [1, 2, 3, 4, 5, 6]
    oracle.assert_close(grads, expected(case, bptt.TruncatedBPTT(1)))


def test_longer_stretches_than_the_stream():
    case = make("gru", 6)
    grads, updates = gradient(case, bptt.ARTBP(law=bptt.ConstantLaw(1.01), every=7))
    assert [u.t1 for u in updates] == [6]
    oracle.assert_close(grads, expected(case, bptt.FullBPTT()))


def test_no_draw_beyond_the_end():
    for every in (1, 3):
        draws = []
        strategy = bptt.ARTBP(law=LAWS["constant"], every=every)
        list(strategy.windows(lambda t: min(t, 12), lambda draws=draws: draws.append(0) or 0.9))
        assert 11 // every <= len(draws) <= 12 // every


def test_training_run_equals_a_hand_written_loop():
    """Optimiser steps after each random window, the state carried across."""
    results = []
    cuts = None
    for by_hand in (False, True):
        case = make("lstm", 40, hidden=3)
        optimizer = torch.optim.SGD(case.parameters(), lr=0.1)

        def update(optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()

        strategy = bptt.ARTBP(law=LAWS["polynomial"], every=1)
        if by_hand:
            windows, _ = oracle.randomised(strategy.law, 1, 40, cuts)
            for _ in oracle.run(case.problem(), windows, 4.0, update):
                pass
        else:
            cuts = set()
            for done in unroll(case, strategy, cuts=(7, 8, 21), reduction="mean", generator=seed(2)):
                cuts.add(done.t1)
                update()
            assert len(cuts) > 5
        results.append([p.detach().clone() for p in case.parameters()])
    oracle.assert_close(results[0], results[1], 1e-11)


def test_mean_divides_by_the_laws_mean_length():
    case, law = make("gru", 9), bptt.PolynomialLaw(alpha=3, mean_length=5)
    total, updates = gradient(case, bptt.ARTBP(law=law), generator=seed(1))
    mean, again = gradient(case, bptt.ARTBP(law=law), generator=seed(1), reduction="mean")
    oracle.assert_close([5.0 * g for g in mean], total)
    assert [float(u.loss) for u in updates] == [float(u.loss) for u in again]


def test_a_plain_function_has_no_mean_length():
    case, strategy = make("gru", 9), bptt.ARTBP(law=lambda k: 0.1)
    with pytest.raises(ValueError, match="sum") as info:
        bptt.unroll(case.model, square, [(case.xs, case.ys)], strategy=strategy)
    assert "\n" not in str(info.value)
