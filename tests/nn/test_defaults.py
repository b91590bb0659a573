"""SimpleRNN as a recurrence of the engine by its own defaults: zeros to start from, rows on axis 0."""

import pytest
import torch

import bptt


def test_it_starts_from_zeros_and_resets_its_rows():
    torch.manual_seed(0)
    model = bptt.nn.SimpleRNN(3, 4, 2, nonlinearity="tanh", bias=True).double()
    xs, ys = torch.randn(7, 4, 3).double(), torch.randn(7, 4, 2).double()  # B = H: a wrong axis would run, too
    is_start = torch.zeros(7, 4, dtype=torch.bool)
    is_start[3, 1] = is_start[5, 0] = True
    loss = bptt.per_step(torch.nn.MSELoss())
    update = bptt.backward(model, loss, bptt.Chunk(xs, ys, is_start))
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    h, total = torch.zeros(4, 4).double(), 0.0
    for x, y, starts in zip(xs, ys, is_start, strict=True):
        h = torch.where(starts[:, None], 0.0, h)
        output, h = model(x[None], h)
        total = total + (output[0] - y).square().mean() / 7
    total.backward()
    torch.testing.assert_close(update.mean_loss, total.detach(), rtol=1e-12, atol=0)
    for value, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(value, p.grad, rtol=1e-12, atol=1e-15)


def test_batch_first_data_are_refused():
    with pytest.raises(ValueError, match="time_dim=1, but SimpleRNN was built with batch_first=False"):
        bptt.evaluate(bptt.nn.SimpleRNN(3, 4, 2), bptt.per_step(torch.nn.MSELoss()), [], time_dim=1)
