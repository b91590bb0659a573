"""Lanes of arrays on disk against NumPy's own reshape, runs that go on to the bit, and memory that stays small."""

import copy
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt.data import Lanes, chunks, continuous, lanes


def by_numpy(values, batch, ahead):
    """(steps, batch, ...) of what a lane reads, and of what lies `ahead` of it in the same lane."""
    steps = len(values) // batch
    table = values[: steps * batch].reshape(batch, steps, *values.shape[1:]).swapaxes(0, 1)
    return table[: steps - ahead], table[ahead:]


@given(
    batch=st.integers(1, 4),
    steps=st.integers(3, 9),
    rest=st.integers(0, 3),
    length=st.integers(1, 10),
    horizon=st.integers(0, 2),
    features=st.sampled_from([(), (2,), (2, 1)]),
    cuts=st.lists(st.integers(0, 30), max_size=3),
    apart=st.booleans(),
)
def test_chunks_of_several_arrays_are_the_lanes_of_one(batch, steps, rest, length, horizon, features, cuts, apart):
    n = batch * steps + min(rest, batch - 1)
    values = np.random.default_rng(0).normal(size=(n, *features))
    other = np.arange(n) if apart else values
    parts = np.split(values, sorted(cuts))  # parts may be empty
    horizon = horizon if apart else max(horizon, 1)
    stream = list(
        Lanes(parts, batch, length, targets=np.split(other, [n // 2]) if apart else None, horizon=horizon, epochs=2)
    )
    inputs, _ = by_numpy(values, batch, horizon)
    _, targets = by_numpy(other, batch, horizon)
    for epoch in (stream[: len(stream) // 2], stream[len(stream) // 2 :]):
        assert [len(chunk.inputs) for chunk in epoch[:-1]] == [length] * (len(epoch) - 1)
        np.testing.assert_array_equal(torch.cat([chunk.inputs for chunk in epoch]).numpy(), inputs)
        np.testing.assert_array_equal(torch.cat([chunk.targets for chunk in epoch]).numpy(), targets)
        assert epoch[0].is_start.tolist() == [True] + [False] * (len(epoch[0].inputs) - 1)
        assert [chunk.is_start for chunk in epoch[1:]] == [None] * (len(epoch) - 1)


@given(
    horizons=st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
    apart=st.booleans(),
    length=st.integers(1, 9),
    batch=st.integers(1, 3),
    features=st.sampled_from([(), (2,)]),
)
def test_several_horizons_are_plain_indexing(horizons, apart, length, batch, features):
    values = np.random.default_rng(0).normal(size=(batch * 9 + batch - 1, *features))
    other = np.arange(len(values)) if apart else values
    horizons = horizons if apart else [h + 1 for h in horizons]
    stream = Lanes(values, batch, length, targets=other if apart else None, horizon=horizons)
    first = next(stream).targets
    state, rest = stream.state_dict(), list(stream)
    targets = torch.cat([first, *(chunk.targets for chunk in rest)])
    assert targets.shape == (9 - max(horizons), batch, len(horizons), *other.shape[1:])
    expected = [
        [[other[lane * 9 + t + h] for h in horizons] for lane in range(batch)] for t in range(9 - max(horizons))
    ]
    np.testing.assert_array_equal(targets.numpy(), np.array(expected))
    assert state["steps"] == 9 - max(horizons)
    again = Lanes(values, batch, length, targets=other if apart else None, horizon=horizons)
    again.load_state_dict(state)
    assert [chunk.targets.tolist() for chunk in again] == [chunk.targets.tolist() for chunk in rest]


def test_a_step_of_which_one_horizon_is_missing_is_masked():
    series = torch.tensor([0.0, 1.0, 2.0, float("nan"), 4.0, 5.0, 6.0])
    (chunk,) = Lanes(series, 1, 10, horizon=range(1, 3), missing=True)
    assert chunk.mask.flatten().tolist() == [True, False, False, True, True]


def test_the_defaults_are_those_of_chunks():
    series = torch.randn(53, 2)
    pairs = zip(Lanes(series, 4, 5, epochs=3), chunks(lanes(series, 4), 5, epochs=3), strict=True)
    for one, other in pairs:
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    assert len(list(continuous(Lanes(series, 4, 5)))) == 3
    assert len(list(itertools.islice(Lanes(series, 4, 5, epochs=None), 100))) == 100


def saved(folder, name, values):
    np.save(folder / name, values)
    return np.load(folder / name, mmap_mode="r")


def test_chunks_are_copies_and_narrow_ids_become_wide(tmp_path):
    ids = saved(tmp_path, "ids.npy", np.arange(40_000, 40_020, dtype=np.uint16))
    chunk = next(Lanes(ids, 2, 5))
    assert chunk.inputs.dtype == torch.int64
    chunk.inputs.zero_()
    assert ids[0] == 40_000
    series = torch.zeros(20)
    next(Lanes(series, 2, 5)).inputs.add_(1)
    assert not series.any()


@pytest.mark.parametrize("make", [lambda x, n, e: Lanes(x, 3, n, epochs=e), lambda x, n, e: chunks(lanes(x, 3), n, e)])
@pytest.mark.parametrize("strategy", [bptt.TruncatedBPTT(4), bptt.TruncatedBPTT(2, 5), bptt.ARTBP(bptt.ConstantLaw(4))])
def test_a_run_over_lanes_goes_on_to_the_bit(make, strategy, tmp_path):
    values = saved(tmp_path, "values.npy", np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32))

    def start(length=6, epochs=2):
        torch.manual_seed(0)
        model = nn.GRU(2, 2)
        stream = make(values, length, epochs)
        updates = bptt.unroll(
            model, bptt.per_step(nn.MSELoss()), stream, strategy=strategy, generator=torch.Generator().manual_seed(1)
        )
        return model, torch.optim.Adam(model.parameters()), updates, stream

    def go_on(model, optimizer, updates, states=None):
        losses = []
        for update in updates:
            optimizer.step()
            optimizer.zero_grad()
            losses.append(update.loss)
            if states is not None:
                states.append((updates.state_dict(), *(copy.deepcopy(x.state_dict()) for x in (model, optimizer))))
        return losses

    states = []
    losses = go_on(*start()[:3], states)
    for number in (0, len(states) // 3, 2 * len(states) // 3, len(states) - 2):
        model, optimizer, updates, stream = start()
        run, weights, moments = states[number]
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        updates.load_state_dict(run)
        rest = go_on(model, optimizer, updates)
        assert torch.equal(torch.stack(rest), torch.stack(losses[number + 1 :]))
        assert stream.state_dict() == {"epoch": 2, "step": 0, "steps": 20}


def test_a_place_is_read_from_and_not_up_to():
    """What lies before it is never touched, and chunks may be cut otherwise."""
    series = torch.arange(100)
    stream = Lanes(series, 2, 6)
    next(stream)
    state = stream.state_dict()
    series[:6] = -1
    other = Lanes(series, 2, 10, epochs=2)
    other.load_state_dict(state)
    assert next(other).inputs[:, 0].tolist() == list(range(6, 16))
    assert sum(len(chunk.inputs) for chunk in other) == 49 - 16 + 49


@pytest.mark.parametrize("state", [None, {}, {"at": 3}, {"epoch": 0, "step": 3, "steps": 48}])
def test_a_place_of_another_stream_is_refused(state):
    with pytest.raises(
        ValueError, match=r"load_state_dict: (this isn't a state|the saved stream had lanes of 48 steps)"
    ):
        Lanes(torch.arange(100), 2, 6).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch=0.*at least 1"),
        ({"batch": 21}, "series of 40 steps is too short for a batch of 21"),
        ({"length": 0}, r"Lanes\(length=0\)"),
        ({"epochs": 0}, r"Lanes\(epochs=0\)"),
        ({"horizon": 0}, r"Lanes\(horizon=0\): must be from 1 to 19"),
        ({"horizon": 20}, r"Lanes\(horizon=20\): must be from 1 to 19: a lane has 20 steps"),
        ({"horizon": (1, 20)}, r"Lanes\(horizon=\(1, 20\)\): must be from 1 to 19"),
        ({"horizon": range(3)}, r"Lanes\(horizon=range\(0, 3\)\): must be from 1"),
        ({"horizon": 1.5}, r"Lanes\(horizon=1.5\): must be from 1"),
        ({"horizon": ()}, r"Lanes\(horizon=\(\)\): takes one horizon or several"),
        ({"horizon": [2, 2]}, "none twice"),
        ({"targets": torch.zeros(39)}, "targets has 39 steps and inputs 40"),
        ({"targets": torch.zeros(40), "horizon": -1}, "must be from 0 to 19"),
        ({"inputs": []}, "inputs is an empty list"),
        (
            {"inputs": [torch.zeros(20), torch.zeros(20, 1)]},
            r"inputs\[1\] holds \(1,\) of torch.float32 on cpu per step",
        ),
        ({"inputs": [torch.zeros(20), torch.zeros(20, dtype=torch.int64)]}, r"inputs\[0\] \(\) of torch.float32"),
    ],
)
def test_lanes_refuse_at_the_call(arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        Lanes(**({"inputs": torch.zeros(40), "batch": 2, "length": 5} | arguments))
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_small_however_long_the_file(tmp_path):
    """Pages of files that count as this process's, while 64 MB are read."""
    series = np.lib.format.open_memmap(tmp_path / "long.npy", mode="w+", dtype=np.float32, shape=(2**20, 16))
    del series
    series = np.load(tmp_path / "long.npy", mmap_mode="r")

    def resident():
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return sum(int(fields[name].split()[0]) for name in ("RssFile", "RssShmem", "RssAnon"))

    before, most = resident(), 0
    for i, chunk in enumerate(Lanes(series[1:], 4, 1024)):
        most = max(most, resident() - before) if i % 16 == 0 else most
        assert not chunk.inputs.any()
    assert most < 16_000
