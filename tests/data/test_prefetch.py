"""A stream read ahead: the same chunks and the same run, errors where they belong, and no thread left behind."""

import contextlib
import copy
import gc
import threading
import time

import pytest
import torch
from torch import nn

import bptt
from bptt.data import Lanes, Prefetch

SERIES = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "bptt prefetch"]


def until(reached):
    """Wait for another thread; ten seconds are an error."""
    end = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    until(lambda: not threads())


class Counted:
    """Numbers as chunks, which says how far it was read, and fails where asked to."""

    def __init__(self, stop=20, fails=None):
        self.at, self.stop, self.fails = 0, stop, fails

    def __iter__(self):
        while self.at < self.stop:
            if self.at == self.fails:
                raise OSError(f"block {self.at}")
            self.at += 1
            yield self.at - 1

    def state_dict(self):
        return vars(self)  # not a copy

    def load_state_dict(self, state):
        self.at = state["at"]


@pytest.mark.parametrize("ahead", [1, 2, 30])
def test_it_reads_so_far_ahead_and_its_place_is_what_was_handed_out(ahead):
    stream = Counted()
    fetched = Prefetch(stream, ahead)
    assert fetched.state_dict()["at"] == 0
    for number in range(20):
        assert next(fetched) == number
        assert fetched.state_dict()["at"] == number + 1
        until(lambda n=number: stream.at == min(n + 1 + ahead, 20))
        other = Prefetch(Counted())
        other.load_state_dict(fetched.state_dict())
        assert list(other) == list(range(number + 1, 20))
    time.sleep(0.01)
    assert stream.at == 20
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(fetched)
    assert fetched.state_dict()["at"] == 20


def test_never_further_ahead_than_asked():
    stream = Counted()
    fetched = Prefetch(stream, 3)
    next(fetched)
    until(lambda: stream.at == 4)
    time.sleep(0.05)
    assert stream.at == 4


def test_an_error_comes_where_its_chunk_would_have_and_stays():
    fetched = Prefetch(Counted(fails=3), 10)
    assert [next(fetched) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(OSError, match="block 3"):
            next(fetched)


def test_the_thread_ends_when_nobody_reads_on():
    fetched = Prefetch(Lanes(SERIES, 2, 4, epochs=None))
    next(fetched)
    assert len(threads()) == 1
    del fetched
    until(lambda: not threads())


def test_a_stream_that_keeps_no_place():
    chunks = [(SERIES[a : a + 7, None], SERIES[a : a + 7, None]) for a in range(0, 120, 7)]
    fetched = Prefetch(chunks)
    assert fetched.state_dict() is None
    with pytest.raises(ValueError, match="a list keeps no place"):
        fetched.load_state_dict({"at": 3})
    check_goes_on(lambda: Prefetch(chunks))


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_read_ahead_goes_on_to_the_bit(epochs):
    straight = check_goes_on(lambda: Lanes(SERIES, 3, 7, epochs=epochs))
    ahead = check_goes_on(lambda: Prefetch(Lanes(SERIES, 3, 7, epochs=epochs), 4))
    assert torch.equal(straight, ahead)


def check_goes_on(make):
    """Losses of a run, the same after each of its updates in a run that goes on from there."""

    def start(weights):
        model = nn.RNN(2, 2)
        model.load_state_dict(weights)
        loss = bptt.per_step(nn.MSELoss())
        return model, bptt.unroll(model, loss, make(), strategy=bptt.TruncatedBPTT(3, 5))

    def go_on(model, updates, states):
        losses = []
        for update in updates:
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
            losses.append(update.loss)
            states.append((copy.deepcopy(model.state_dict()), updates.state_dict()))
        return torch.stack(losses)

    torch.manual_seed(0)
    states = []
    losses = go_on(*start(nn.RNN(2, 2).state_dict()), states)
    for number in range(0, len(states) - 1, 4):
        model, updates = start(states[number][0])
        updates.load_state_dict(states[number][1])
        assert torch.equal(go_on(model, updates, []), losses[number + 1 :])
    return losses


@pytest.mark.parametrize("ahead", [0, -1, 1.5, True])
def test_ahead_is_a_whole_number(ahead):
    with pytest.raises(ValueError, match=r"Prefetch\(ahead=.*at least 1"):
        Prefetch([], ahead)


def test_what_cannot_be_read_or_loaded_is_refused():
    with pytest.raises(TypeError, match="iterable of chunks, not int"):
        Prefetch(3)


@pytest.mark.parametrize("read", [0, 1, 20])
@pytest.mark.parametrize("fails", [None, 7])
def test_it_goes_to_a_place_whatever_was_read_before(read, fails):
    fetched = Prefetch(Counted(fails=fails), 3)
    with contextlib.suppress(OSError):
        for _ in range(read):
            next(fetched)
    fetched.load_state_dict({"at": 15})
    assert fetched.state_dict()["at"] == 15
    assert list(fetched) == [15, 16, 17, 18, 19]
