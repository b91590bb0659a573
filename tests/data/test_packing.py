"""Packed and padded sequences against each of them run alone, and how much is padded against the best there is."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt.data import pack

LOSS = bptt.per_step(nn.MSELoss())


def drawn(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(n, size, generator=generator, dtype=torch.float64) for n in lengths] for size in (3, 4)]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    batch=st.one_of(st.none(), st.integers(1, 7)),
    cut=st.integers(1, 12),
    kind=st.sampled_from([nn.GRU, nn.LSTM]),
)
def test_the_gradient_is_that_of_each_run_alone(lengths, batch, cut, kind):
    batch = None if batch is None else min(batch, len(lengths))
    xs, ys = drawn(lengths)
    torch.manual_seed(0)
    model = kind(3, 4, dtype=torch.float64)
    alone = sum(model(x)[0].sub(y).square().mean(1).sum() for x, y in zip(xs, ys, strict=True))
    expected = torch.autograd.grad(alone, list(model.parameters()))
    chunk = pack(xs, ys, batch)
    pieces = [bptt.Chunk(*(x if x is None else x[a : a + cut] for x in chunk)) for a in range(0, len(chunk[0]), cut)]
    for _ in bptt.unroll(model, LOSS, pieces, strategy=bptt.FullBPTT(), reduction="sum"):
        pass
    for p, want in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad * (batch or len(lengths)), want, rtol=1e-12, atol=1e-12)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), batch=st.integers(1, 3))
def test_little_is_padded(lengths, batch):
    """No more than a third above the best of all ways, which is what longest-first is known to keep."""
    batch = min(batch, len(lengths))
    ways = itertools.product(range(batch), repeat=len(lengths))
    best = min(max(np.bincount(way, weights=lengths, minlength=batch)) for way in ways)
    ids = [torch.full((n,), i) for i, n in enumerate(lengths)]
    assert best <= len(pack(ids, ids, batch).inputs) <= best * 4 / 3


def test_every_step_is_there_once_and_the_tail_is_masked():
    whole = np.arange(1, 22)
    parts = np.split(whole, [4, 11, 13, 20])  # lengths 4, 7, 2, 7, 1
    chunk = pack(parts, [part * 2.0 for part in parts], 2)
    assert chunk.inputs.t().tolist() == [[*range(5, 12), *range(1, 5)], [*range(14, 21), 12, 13, 21, 0]]
    assert torch.equal(chunk.targets, chunk.inputs * 2.0)
    assert chunk.is_start.nonzero().tolist() == [[0, 0], [0, 1], [7, 0], [7, 1], [9, 1]]
    assert (~chunk.mask).nonzero().tolist() == [[10, 1]]


def test_without_a_number_of_lanes_rows_are_padded_in_order():
    xs, ys = drawn([2, 5, 3])
    chunk = pack(xs, ys)
    padded = nn.utils.rnn.pad_sequence(xs)  # torch's own
    assert torch.equal(chunk.inputs, padded)
    assert torch.equal(chunk.mask, torch.arange(5)[:, None] < torch.tensor([2, 5, 3]))
    assert chunk.is_start.nonzero().tolist() == [[0, 0], [0, 1], [0, 2]]
    assert pack(xs[:1], ys[:1]).mask is None


@pytest.mark.parametrize(
    ("inputs", "targets", "batch", "error", "message"),
    [
        (torch.zeros(3, 4), [torch.zeros(3)], 1, TypeError, r"inputs is a Tensor: pass a list of tensors \(T_i"),
        ([torch.zeros(3)], [torch.zeros(4)], 1, ValueError, r"targets\[0\] has 4 steps and inputs\[0\] 3"),
        ([torch.zeros(3)], [torch.zeros(3)] * 2, 1, ValueError, "targets holds 2 sequences and inputs 1"),
        ([torch.zeros(3), torch.zeros(0)], [torch.zeros(3), torch.zeros(0)], 1, ValueError, r"inputs\[1\] is a seq"),
        ([torch.zeros(3)], [torch.zeros(3)], 2, ValueError, r"batch=2\): must be from 1 to 1"),
        ([torch.zeros(3)], [torch.zeros(3)], 0, ValueError, r"batch=0\): must be from 1 to 1"),
        ([], [], None, ValueError, "inputs is an empty list"),
        ([torch.zeros(3), torch.zeros(3, 2)], [torch.zeros(3)] * 2, 1, ValueError, r"inputs\[1\] holds \(2,\)"),
    ],
)
def test_what_does_not_go_together_is_one_line(inputs, targets, batch, error, message):
    with pytest.raises(error, match=message) as raised:
        pack(inputs, targets, batch)
    assert "\n" not in str(raised.value)
