"""Budgets in bytes: kept as measured from outside, reported, refused with a number that works."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from support import oracle
from support.cases import NAMES, make, some_resets, square
from support.meters import metered
from support.runs import check, gradient, unroll
from support.strategies_under_test import CUTTING, STRATEGIES

F64 = torch.float64


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.thin
def test_budgets_in_bytes_are_kept(strategy, name):
    """Measured by hooks of our own; the gradient is that without a budget; the report is no less than measured."""
    _, stored, plain, want = metered(name, 60, strategy, None)
    needed = stored.peak
    for share in (1.5, 0.7, 0.4):
        budget = int(needed * share)
        try:
            _, meter, updates, got = metered(name, 60, strategy, f"{budget}B")
        except ValueError:
            # windows of a few steps: one segment alone may be more than the share
            assert max(u.t1 - u.start for u in plain) < 20
            continue
        oracle.assert_close(got, want)
        assert meter.peak <= budget
        assert all(u.memory_bytes <= budget for u in updates)


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(3, 2), bptt.Checkpoints(1, 5)], ids=str)
def test_what_is_reported_is_what_was_used(strategy, memory):
    """No less than autograd held, and no more than that and a few states and cotangents."""
    _, meter, updates, _ = metered("lstm", 60, strategy, memory)
    one = 2 * 4 * 13 * 8
    few = 6
    if isinstance(strategy, bptt.AdaptiveTruncatedBPTT):  # a probe has the cotangents of 8 losses, and its 11 states
        few += 3 * 8 + (0 if memory else 11)
    reported, slots = max(u.memory_bytes for u in updates), 1 if memory is None else memory.slots
    assert meter.peak <= reported <= meter.peak + (slots + few) * one


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize("length", [200, 1000])
def test_tight_budgets(name, length):
    """A tenth and a fortieth of what storing everything takes."""
    _, stored, _, want = metered(name, length, bptt.FullBPTT(), None)
    steps = []
    for share in (10, 40):
        budget = stored.peak // share
        if length == 200 and share == 40:
            continue
        _, meter, (update,), got = metered(name, length, bptt.FullBPTT(), f"{budget}B", cuts=(length // 3,))
        oracle.assert_close(got, want, 1e-11)
        assert meter.peak <= budget
        assert update.memory_bytes <= budget
        steps.append(update.forward_steps)
        assert update.forward_steps > length  # it does replay
    assert steps == sorted(steps)
    assert steps[0] <= 4 * length


def test_a_large_budget_stores_everything():
    _, meter, (update,), _ = metered("lstm", 60, bptt.FullBPTT(), "1GiB")
    assert update.forward_steps <= 2 * 60  # no replay but for the measurement or the last pull-back
    assert update.memory_bytes >= meter.peak


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize(
    "strategy", [bptt.FullBPTT(), bptt.TruncatedBPTT(20), bptt.TruncatedBPTT(5, 20)], ids=["full", "20", "5-20"]
)
def test_too_small_a_budget_says_the_least_that_works(name, strategy):
    """The error names a number of bytes; it works, and the gradient is right; one byte less does not."""
    _, _, _, want = metered(name, 60, strategy, None)
    with pytest.raises(bptt.BudgetError, match=r"^memory=64 .*: the least that works here is memory=\d+\.$") as info:
        metered(name, 60, strategy, "64B")
    least = info.value.least
    assert f"memory={least}." in str(info.value)
    _, meter, updates, got = metered(name, 60, strategy, f"{least}B")
    oracle.assert_close(got, want)
    assert meter.peak <= least
    assert all(u.memory_bytes <= least for u in updates)
    with pytest.raises(bptt.BudgetError) as info:
        metered(name, 60, strategy, f"{least - 1}B")
    assert (info.value.least, info.value.strategy) == (least, None)


@pytest.mark.parametrize("memory", [1, 700])
def test_too_small_a_budget_for_one_sequence(memory):
    case = make("lstm", 40)

    def backward(memory):
        return bptt.backward(case.model, square, (case.xs, case.ys), case.zeros(), memory=memory)

    with pytest.raises(bptt.BudgetError) as info:
        backward(memory)
    least = info.value.least
    assert memory < backward(least).memory_bytes <= least
    with pytest.raises(bptt.BudgetError) as info:
        backward(least - 1)
    assert info.value.least == least


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("64KiB", 64 << 10),
        ("3MB", 3_000_000),
        ("1GB", 10**9),
        ("9999999B", 9999999),
    ],
)
def test_units(text, count):
    """The budget that a plan says it keeps to, and a run that it leaves whole."""
    case = make("gru", 8)
    found = bptt.plan(case.model, square, (case.xs, case.ys), memory=text, strategies=[bptt.FullBPTT()])
    assert found.budget == count
    *_, update = unroll(case, bptt.FullBPTT(), memory=text)
    assert (update.memory_bytes, update.forward_steps) == (found.best.memory_bytes, 8)


@pytest.mark.parametrize(("text", "count"), [("2KiB", 2048), ("3KB", 3000), ("5000B", 5000)])
def test_a_budget_in_words_is_one_in_bytes(text, count):
    case = make("gru", 40)
    said, counted = (next(unroll(case, bptt.FullBPTT(), memory=memory)) for memory in (text, count))
    assert said.forward_steps > 40  # it does bind
    assert (said.forward_steps, said.memory_bytes) == (counted.forward_steps, counted.memory_bytes)


@pytest.mark.parametrize("memory", ["", "lots", "12 parsecs", "-5MiB", "MiB", 0, -7, True, object(), (1, 2)])
def test_budgets_that_are_none(memory):
    case = make("gru", 4)
    with pytest.raises((ValueError, TypeError), match="memory") as info:
        bptt.unroll(case.model, square, [(case.xs, case.ys)], strategy=bptt.FullBPTT(), memory=memory)
    assert "\n" not in str(info.value)


def test_budgets_with_every_structure_of_state():
    for name in ("dict", "named", "complex"):
        case = make(name, 30)
        for memory in (bptt.Checkpoints(2, 4), "1MiB", "20KB"):
            check(case, bptt.FullBPTT(), memory=memory, cuts=(7,))
            check(case, bptt.TruncatedBPTT(5, 11), memory=memory, cuts=(7,))


def test_a_compound_budget_with_a_vocabulary():
    """The loss saves more than the recurrence: its bytes count as well."""
    case, readout = make("lstm", 80, hidden=4), nn.Linear(4, 200, dtype=F64)

    def loss(outputs, targets):
        return torch.log_softmax(readout(outputs), -1)[..., 0].square()

    tensors = [*case.parameters(), *readout.parameters()]
    want = gradient(case, bptt.FullBPTT(), tensors, loss=loss)[0]
    got, (update,) = gradient(case, bptt.FullBPTT(), tensors, loss=loss, memory="64KiB")
    oracle.assert_close(got, want, 1e-11)
    assert update.memory_bytes <= 64 << 10
    assert update.forward_steps > 80


@pytest.mark.deep
@given(st.data())
def test_random_budgets(data):
    """Kept by every window, with the gradient of full storage; the least that an error names works."""
    draw = data.draw
    length, batch = draw(st.integers(1, 60)), draw(st.integers(1, 3))
    case = make(draw(st.sampled_from(NAMES)), length, B=batch, hidden=draw(st.sampled_from([2, 5, 13])))
    strategy = CUTTING[draw(st.sampled_from(list(CUTTING)))]
    more = {"cuts": draw(st.lists(st.integers(1, 59), max_size=3))} if length == 60 else {}
    more |= {"is_start": some_resets(length, batch, rate=0.1)} if draw(st.booleans()) else {}
    want, updates = gradient(case, strategy, **more)
    budget = int(max(u.memory_bytes for u in updates) * draw(st.floats(0.02, 1.2))) + 1
    try:
        got, updates = gradient(case, strategy, memory=budget, **more)
    except bptt.BudgetError as error:
        budget = error.least
        got, updates = gradient(case, strategy, memory=budget, **more)
    oracle.assert_close(got, want)
    assert max(u.memory_bytes for u in updates) <= budget


@pytest.mark.parametrize("number", range(4))
@pytest.mark.thin
def test_budgets_where_windows_and_calls_differ(number):
    """Random windows cut by resets into other calls each time: a plan made for one must hold for its own window."""
    case = make("named", 71, B=4, hidden=5, dtype=torch.float32)
    strategy = STRATEGIES["artbp-constant"]
    for budget in (1484, 1600, 1700, 2100):
        run = unroll(
            case,
            strategy,
            memory=budget,
            is_start=some_resets(71, 4, rate=0.1),
            cuts=(1, 6, 51),
            generator=torch.Generator().manual_seed(number),
        )
        held = [u.memory_bytes for u in run]
        assert 0 < min(held) <= max(held) <= budget


@pytest.mark.parametrize(
    "error",
    [bptt.BudgetError("too small", 64, bptt.FullBPTT()), bptt.NonFiniteLossError("a loss is nan", 7)],
    ids=lambda error: type(error).__name__,
)
def test_errors_go_through_a_pipe_with_their_fields(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))
