"""The checkpoint schedule as data: a machine without tensors runs it, and the closed form counts it."""

import itertools
import math

import pytest
from checkpoint_schedules import EndForward, EndReverse, Forward, MultistageCheckpointSchedule

from bptt._checkpoint import Advance, Free, Restore, Store, Vjp, actions, forward_steps


def closed_form(length: int, slots: int) -> int:
    """t(l, c) = r l - C(c + r, c + 1), r the smallest with C(c + r, c) >= l (Griewank & Walther 2000)."""
    r = next(r for r in itertools.count() if math.comb(slots + r, slots) >= length)
    return r * length - math.comb(slots + r, slots + 1)


def fewest(length: int, slots: int, table: dict) -> int:
    """The same by dynamic programming: advance i, keep the state there, reverse the right part, then the left."""
    if length == 1:
        return 0
    if slots == 1:
        return length * (length - 1) // 2
    if (length, slots) not in table:
        table[length, slots] = min(
            i + fewest(length - i, slots - 1, table) + fewest(i, slots, table) for i in range(1, length)
        )
    return table[length, slots]


def drive(length: int, slots: int) -> int:
    """Run the actions on a machine whose state is a step number; returns the advances it made."""
    working, stored, advances, pulled = 0, {0}, 0, []
    for action in actions(length, slots):
        match action:
            case Advance(start, stop):
                assert working == start < stop <= length
                working, advances = stop, advances + stop - start
            case Store(step):
                assert working == step
                assert step not in stored
                stored.add(step)
            case Restore(step):
                assert step in stored, "a state that was never stored, or was freed"
                working = step
            case Vjp(step):
                assert working == step, "the tape starts from the state before the segment"
                pulled.append(step)
                working = None  # the pull-back used it up
            case Free(step):
                stored.remove(step)
            case _:
                raise AssertionError(f"unknown action {action}")
        assert len(stored) <= slots
    assert pulled == list(reversed(range(length))), "each segment once, in reverse order"
    assert not stored, "nothing stays behind"
    return advances


@pytest.mark.parametrize("slots", range(1, 9))
def test_every_schedule_is_valid_and_optimal(slots):
    table: dict = {}
    for length in range(1, 41):
        assert drive(length, slots) == closed_form(length, slots) == forward_steps(length, slots)
        assert closed_form(length, slots) == fewest(length, slots, table)


@pytest.mark.parametrize(
    ("slots", "count"), [(1, 499500), (2, 28820), (3, 12155), (5, 6284), (10, 3636), (20, 2747), (32, 2405), (50, 1948)]
)
def test_table_at_one_thousand_steps(slots, count):
    assert forward_steps(1000, slots) == count
    assert drive(1000, slots) == count


@pytest.mark.parametrize(("length", "slots"), [(1, 5), (2, 1), (7, 7), (7, 6), (7, 50), (40, 1000), (1, 1)])
def test_more_slots_than_needed(length, slots):
    assert drive(length, slots) == forward_steps(length, slots)
    if slots >= length:
        assert forward_steps(length, slots) == length - 1  # one sweep forward, nothing twice


def multistage(length: int, slots: int) -> int:
    """Advances of the oracle's schedule: its forwards that record no tape."""
    schedule, advances = MultistageCheckpointSchedule(length, slots, 0), 0
    for action in schedule:
        if isinstance(action, Forward) and not action.write_adj_deps:
            advances += action.n1 - action.n0
        elif isinstance(action, EndForward):
            schedule.finalize(length)
        elif isinstance(action, EndReverse):
            break
    return advances


@pytest.mark.parametrize(("length", "slots"), [(2, 1), (11, 2), (11, 3), (37, 4), (100, 7), (365, 2), (1000, 5)])
def test_agrees_with_checkpoint_schedules(length, slots):
    assert multistage(length, slots) == forward_steps(length, slots)
    assert drive(length, slots) == multistage(length, slots)


def test_eleven_steps_with_two_slots():
    assert forward_steps(11, 2) + 11 == 35  # as in the figure of the literature: 24 advances, 11 taped


def test_an_action_costs_no_search():
    """A million segments: the first thousand actions come without working out the rest."""
    first = list(itertools.islice(actions(1_000_000, 100), 1000))
    assert len(first) == 1000
    assert isinstance(first[0], Advance)
    assert forward_steps(1_000_000, 100) == closed_form(1_000_000, 100)


def test_count_of_truncated_sweep_grows_with_length_and_falls_with_slots():
    for slots in range(1, 8):
        counts = [forward_steps(length, slots) for length in range(1, 60)]
        assert counts == sorted(counts)
        assert all(forward_steps(n, slots + 1) <= forward_steps(n, slots) for n in range(1, 60))
