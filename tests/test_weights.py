"""Masks of weights, and `reduction="valid"`, against losses that are weighed by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import bptt

T, B = 12, 3
X, Y = torch.randn(2, T, B, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.tensor([0.0, 1.0, 0.5, 5.0], dtype=torch.float64)[
    torch.randint(4, (T, B), generator=torch.Generator().manual_seed(1))
]
LOSS = bptt.per_step(nn.MSELoss())
BUDGETS = [None, bptt.Checkpoints(2, 3), "6KiB"]


def layer():
    torch.manual_seed(1)
    return nn.GRU(4, 4).double()


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def by_hand(divisor):
    """The gradient of Σ w l / B / divisor, and that sum."""
    model = layer()
    total = ((model(X)[0] - Y).square().mean(2) * WEIGHTS).sum() / B
    (total / divisor).backward()
    return gradient(model), total.item()


@pytest.mark.parametrize("memory", BUDGETS, ids=str)
@pytest.mark.parametrize("strategy", [bptt.FullBPTT(), bptt.TruncatedBPTT(3, T + 2)], ids=str)
@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", T), ("valid", WEIGHTS.sum() / B)])
def test_losses_are_weighed(reduction, divisor, strategy, memory):
    exact, total = by_hand(divisor)
    model, targets = layer(), torch.where(WEIGHTS[..., None] > 0, Y, torch.nan)
    chunk = bptt.Chunk(X, targets, mask=WEIGHTS)
    update = bptt.backward(model, LOSS, chunk, strategy=strategy, memory=memory, reduction=reduction)
    torch.testing.assert_close(gradient(model), exact, rtol=1e-12, atol=1e-15)
    assert update.loss.item() == pytest.approx(total)
    assert update.mean_loss.item() == pytest.approx(total / (WEIGHTS.sum().item() / B))


@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(1, 2)], ids=str)
def test_valid_divides_each_window_by_its_own_weight(memory):
    model = layer()
    losses = (model(X)[0] - Y).square().mean(2)
    exact = []
    for a in range(0, T, 4):
        own, w = layer(), WEIGHTS[a : a + 4]
        with torch.no_grad():
            h = own(X[:a])[1] if a else None
        part = (own(X[a : a + 4], h)[0] - Y[a : a + 4]).square().mean(2)
        ((part * w).sum() / w.sum()).backward()
        exact.append(gradient(own))
    chunk = bptt.Chunk(X, Y, mask=WEIGHTS)
    model = layer()
    for update, wanted in zip(
        bptt.unroll(model, LOSS, [chunk], strategy=bptt.TruncatedBPTT(4), reduction="valid", memory=memory),
        exact,
        strict=True,
    ):
        torch.testing.assert_close(gradient(model), wanted, rtol=1e-12, atol=1e-15)
        a, b = update.t0, update.t1
        expected = (losses[a:b] * WEIGHTS[a:b]).sum() / WEIGHTS[a:b].sum()
        assert update.mean_loss.item() == pytest.approx(expected.item())
        model.zero_grad()


def test_valid_counts_rows_of_different_length_by_their_steps():
    lengths = torch.tensor([T, 7, 3])
    mask = torch.arange(T)[:, None] < lengths
    model = layer()
    losses = (model(X)[0] - Y).square().mean(2)
    losses[mask].mean().backward()
    exact = gradient(model)
    for rows in (
        mask,
        mask.long(),
        mask.float(),
        mask.to(torch.uint8),
        mask[..., None],
        mask.numpy().astype(np.float32),
    ):
        model = layer()
        update = bptt.backward(model, LOSS, bptt.Chunk(X, Y, mask=rows), reduction="valid")
        torch.testing.assert_close(gradient(model), exact, rtol=1e-12, atol=1e-15)
        assert update.mean_loss.item() == pytest.approx(losses[mask].mean().item())


def test_zeros_and_ones_of_any_dtype_are_bool_to_the_bit():
    mask = WEIGHTS > 0
    found = []
    for rows in (mask, mask.long(), mask.double(), mask.half()):
        model = layer()
        bptt.backward(model, LOSS, bptt.Chunk(X, Y, mask=rows), memory=bptt.Checkpoints(2, 3))
        found.append(gradient(model))
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("memory", BUDGETS, ids=str)
def test_ignored_targets_and_weights_together(memory):
    targets = torch.randint(4, (T, B), generator=torch.Generator().manual_seed(2))
    ignored = torch.rand(T, B, generator=torch.Generator().manual_seed(3)) < 0.3
    targets = targets.masked_fill(ignored, -100)
    model, weights = layer(), WEIGHTS * ~ignored
    losses = nn.functional.cross_entropy(model(X)[0].flatten(0, 1), targets.flatten(), reduction="none").reshape(T, B)
    ((losses * WEIGHTS).sum() / weights.sum()).backward()
    exact = gradient(model)
    model = layer()
    chunk = bptt.Chunk(X, targets, mask=WEIGHTS)
    loss = bptt.per_step(nn.CrossEntropyLoss())
    update = bptt.backward(model, loss, chunk, memory=memory, reduction="valid")
    torch.testing.assert_close(gradient(model), exact, rtol=1e-12, atol=1e-15)
    assert update.mean_loss.item() == pytest.approx(((losses * WEIGHTS).sum() / weights.sum()).item())


def test_a_window_of_no_weight_gives_nothing():
    model, mask = layer(), WEIGHTS.clone()
    mask[4:8] = 0
    updates = bptt.unroll(model, LOSS, [bptt.Chunk(X, Y, mask=mask)], strategy=bptt.TruncatedBPTT(4), reduction="valid")
    next(updates)
    model.zero_grad()
    update = next(updates)
    assert update.loss == update.mean_loss == 0
    assert not any(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("time_dim", [0, 1])
def test_starts_as_loaders_give_them(time_dim):
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[4, 1] = starts[7, 0] = True
    found = []
    for kind in (torch.bool, torch.int64, torch.float32, torch.uint8):
        for squeezed in (True, False):
            rows = starts.to(kind) if squeezed else starts.to(kind)[..., None]
            model = nn.GRU(4, 4, batch_first=time_dim == 1).double()
            model.load_state_dict(layer().state_dict())
            parts = (X, Y, rows) if time_dim == 0 else tuple(t.transpose(0, 1) for t in (X, Y, rows))
            bptt.backward(model, LOSS, bptt.Chunk(*parts), time_dim=time_dim)
            found.append(gradient(model))
    assert all(torch.equal(found[0], other) for other in found)
    arrays = bptt.Chunk(X.numpy(), Y.numpy()[::-1][::-1], starts.numpy())
    model = layer()
    bptt.backward(model, LOSS, arrays)
    torch.testing.assert_close(gradient(model), found[0], rtol=1e-12, atol=1e-14)


def test_arrays_that_cannot_be_written_to_or_run_backward():
    frozen = X.numpy().copy()
    frozen.flags.writeable = False
    model = layer()
    bptt.backward(model, LOSS, (frozen, Y.numpy()[::-1]))
    exact = layer()
    bptt.backward(exact, LOSS, (X, Y.flip(0)))
    assert torch.equal(gradient(model), gradient(exact))


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (WEIGHTS - 1, r"mask holds -1\.0: weights are finite numbers of at least 0"),
        (torch.where(WEIGHTS == 5, torch.nan, WEIGHTS), r"mask holds nan: weights are"),
        (torch.where(WEIGHTS == 5, torch.inf, WEIGHTS), r"mask holds inf: weights are"),
        (torch.full((T, B), 2), r"mask of torch\.int64 holds 2: pass bool, or the numbers 0 and 1"),
        (torch.ones(T, B, 2), r"mask of shape \(12, 3, 2\) doesn't fit 12 steps"),
        (torch.ones(T + 1, B), r"mask of shape \(13, 3\) doesn't fit 12 steps"),
        ([True] * T, r"mask must be a tensor \(T, B\) or \(T,\); list was passed"),
        (torch.ones(T, B, dtype=torch.complex64), r"mask must be a tensor .*complex64 was passed"),
    ],
)
def test_what_is_no_mask(mask, told):
    with pytest.raises((ValueError, TypeError), match=told):
        bptt.backward(layer(), LOSS, bptt.Chunk(X, Y, mask=mask))


def test_a_start_is_no_weight():
    with pytest.raises(ValueError, match=r"is_start of torch\.float64 holds 0\.5: pass bool, or the numbers 0 and 1"):
        bptt.backward(layer(), LOSS, bptt.Chunk(X, Y, torch.full((T, B), 0.5, dtype=torch.float64)))
    with pytest.raises(TypeError, match=r"a NumPy array of object"):
        bptt.backward(layer(), LOSS, (np.array([[None]]), Y))
