"""Missing targets: the gradient is that of the losses that are there."""

import numpy as np
import pytest
import torch
from torch import nn

import bptt
from bptt.data import Lanes, observed

NAN = float("nan")


def test_a_step_counts_where_all_of_it_is_there():
    targets = torch.zeros(4, 2, 3, 1)
    targets[1, 0, 2] = targets[3, 1] = NAN
    assert observed(targets).tolist() == [[True, True], [False, True], [True, True], [True, False]]
    assert observed(torch.tensor([NAN, 1.0, float("inf")])).tolist() == [False, True, True]
    assert observed(torch.zeros(3, 2, dtype=torch.int64)).all()


def test_what_has_no_time_axis_is_refused():
    with pytest.raises(TypeError, match=r"takes a tensor .*not list"):
        observed([1.0])
    with pytest.raises(ValueError, match=r"shape \(\) has no time axis"):
        observed(torch.tensor(1.0))


@pytest.mark.parametrize("features", [(), (2,)])
def test_gaps_in_a_series_leave_the_gradient_of_the_rest(features):
    random = np.random.default_rng(0)
    inputs, targets = random.normal(size=(40, 3)), random.normal(size=(40, *(features or (1,))))
    targets[random.random(targets.shape) < 0.2] = NAN
    targets[10:20] = NAN
    model = nn.GRU(3, targets.shape[1], dtype=torch.float64)

    losses = []
    for row, t in zip(np.split(inputs, 2), np.split(targets, 2), strict=True):
        there = ~np.isnan(t).any(1)
        outputs = model(torch.tensor(row))[0][there]  # the others never meet a NaN, and get no gradient
        losses.append(outputs.sub(torch.tensor(t[there])).square().mean(1))
    kept = torch.cat(losses)
    expected = torch.autograd.grad(kept.sum() / 2, list(model.parameters()))

    stream = Lanes(inputs, 2, 7, targets=targets, missing=True)
    for update in bptt.unroll(model, bptt.per_step(nn.MSELoss()), stream, strategy=bptt.FullBPTT(), reduction="sum"):
        torch.testing.assert_close(update.mean_loss, kept.mean().detach())
    for p, want in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-12, atol=1e-12)


def test_a_chunk_without_gaps_has_no_mask_and_gaps_unasked_for_are_an_error():
    series = torch.zeros(40, 1)
    series[30] = NAN
    assert [chunk.mask is None for chunk in Lanes(series, 1, 10, missing=True)] == [True, True, False, True]
    assert all(chunk.mask is None for chunk in Lanes(series, 1, 10))
    with pytest.raises(bptt.NonFiniteLossError):
        list(bptt.unroll(nn.RNN(1, 1), bptt.per_step(nn.MSELoss()), Lanes(series, 1, 10), strategy=bptt.FullBPTT()))
