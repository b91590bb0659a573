"""A loss that mixes time steps is refused where a window has several segments; one that doesn't never is."""

import pytest
import torch
from torch import nn

import bptt
from support.cases import square

F64 = torch.float64
T = 12
BUDGETS = {
    "2 of 4": bptt.Checkpoints(2, 4),
    "short end": bptt.Checkpoints(2, 11),
    "single steps": bptt.Checkpoints(3, 1),
    "bytes": "6KiB",
}


def error(o, y):
    return (o - y).square().mean((1, 2))


def with_entry(losses, at, value):
    return torch.cat([losses[:at], (losses[at] + value)[None], losses[at + 1 :]])


MIXED = {
    "normalised": lambda o, y: error(o, y) / error(o, y).sum(),
    "ratio": lambda o, y: (error(o, y).sum() / y.square().sum()).expand(len(o)),
    "cumulative": lambda o, y: (o - y).cumsum(0).square(),
    "last two": lambda o, y: with_entry(error(o, y), len(o) - 1, (o[-1] - o[-2 if len(o) > 1 else -1]).square().mean()),
    "first and last": lambda o, y: with_entry(error(o, y), 0, (o[-1] - o[0]).square().mean()),
    "neighbours": lambda o, y: error(o, y) + (o - torch.cat([o[:1], o[:-1]])).square().mean((1, 2)),
    "neighbours with a roll": lambda o, y: error(o, y) + (o - o.roll(1, 0)).square().mean((1, 2)),
    "softmax over time": lambda o, y: o.softmax(0) * y,
    "advantages": lambda o, y: (o - o.mean(0)) / (o.std(0, correction=0) + 1e-3) * y,
    "batch norm over time": lambda o, y: (
        nn.functional.batch_norm(o.flatten(0, 1), None, None, training=True).unflatten(0, o.shape[:2]).square()
    ),
    "reversed": lambda o, y: (o.flip(0) - y).square(),
    "by its length": lambda o, y: error(o, y) / len(o),
    "with aux": lambda o, y: (error(o, y) - error(o, y).mean(), o[..., 0]),
}


def data():
    torch.manual_seed(0)
    return torch.randn(T, 2, 3, dtype=F64), torch.randn(T, 2, 4, dtype=F64)


def unroll(model, loss, stream, strategy=None, **options):
    return bptt.unroll(model, loss, stream, strategy=strategy or bptt.FullBPTT(), **options)


def first_update(loss, **options):
    torch.manual_seed(1)
    return next(unroll(nn.LSTM(3, 4, dtype=F64), loss, [data()], **options))


@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("loss", MIXED.values(), ids=MIXED)
def test_a_mixed_loss_is_named_in_the_first_window(loss, memory):
    with pytest.raises(ValueError, match="the loss <lambda> mixes time steps") as caught:
        first_update(loss, memory=memory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", [MIXED["ratio"], MIXED["neighbours"]], ids=["ratio", "neighbours"])
def test_it_is_exact_where_a_window_is_one_segment(loss):
    for memory in (None, bptt.Checkpoints(1, T), "1MiB"):
        assert first_update(loss, memory=memory).t1 == T


def test_windows_that_look_back():
    """The losses of a window lie in its last steps only; there may be fewer than a segment has, or one."""
    for k1 in (2, 5):
        with pytest.raises(ValueError, match="mixes"):
            list(
                unroll(
                    nn.LSTM(3, 4, dtype=F64),
                    MIXED["normalised"],
                    [data()],
                    strategy=bptt.TruncatedBPTT(k1, k1 + 3),
                    memory=bptt.Checkpoints(2, 3),
                )
            )
    single = bptt.TruncatedBPTT(1, 4)
    assert list(unroll(nn.LSTM(3, 4, dtype=F64), error, [data()], strategy=single, memory=bptt.Checkpoints(2, 3)))


class Decoder(nn.Module):
    """A loss with layers: dropout, batch statistics over rows of a step, a count of its calls in a buffer."""

    def __init__(self, drop=0.0, dtype=F64):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Dropout(drop), nn.Linear(64, 4)).to(dtype)
        self.register_buffer("calls", torch.zeros(()))
        self.history = []

    def forward(self, outputs, targets):
        self.calls += 1
        self.history.append(len(outputs))
        centred = outputs - outputs.mean(1, keepdim=True)
        return (self.layers(centred) - targets).square() * (1 + 0.1 * self.calls)


@pytest.mark.parametrize("memory", [BUDGETS["2 of 4"], BUDGETS["single steps"]], ids=["2 of 4", "single steps"])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_no_false_alarm(memory, dtype):
    weights = torch.linspace(0.1, 2, T, dtype=dtype)
    xs, ys = (leaf.to(dtype) for leaf in data())
    torch.manual_seed(1)
    model = nn.LSTM(3, 4, 2, dropout=0.3, dtype=dtype)

    def weighted(outputs, targets):
        y, w = targets
        return (outputs - y).square().sum(2) * w[:, None], outputs.argmax(-1)

    for loss, targets in (
        (weighted, (ys, weights)),
        (Decoder(dtype=dtype), ys),
        (Decoder(0.5, dtype), ys),
        (lambda o, y: o * torch.rand_like(o) + y, ys),
        (lambda o, y: torch.where(y > 0, o.log(), o), ys.abs().where(ys > 5, -ys.abs())),
        (bptt.per_step(nn.MSELoss()), ys),
    ):
        assert next(unroll(model, loss, [(xs, targets)], memory=memory)).t1 == T
    with torch.autocast("cpu", torch.bfloat16):
        assert next(unroll(model.float(), Decoder(dtype=torch.float32), [(xs.float(), ys.float())], memory=memory))


def test_a_loss_that_is_near_zero_only_rounds():
    """A decoder that has learned its task: differences of 1e-4 of what is subtracted, in float32."""
    torch.manual_seed(0)
    decoder = nn.Linear(4, 50)

    def loss(outputs, targets):
        return (decoder(outputs) * 100 - targets).square()

    model = nn.LSTM(3, 4)
    xs, _ = (leaf.float() for leaf in data())
    with torch.no_grad():
        ys = decoder(model(xs)[0]) * 100 + 0.001 * torch.randn(T, 2, 50)
    for segment in (1, 2, 4, 7):
        assert next(unroll(model, loss, [(xs, ys)], memory=bptt.Checkpoints(2, segment)))


def test_what_a_loss_keeps_is_left_as_it_was():
    loss = Decoder()
    calls = []
    first_update(loss, memory=bptt.Checkpoints(2, 6))
    first_update(lambda o, y: calls.append(len(o)) or square(o, y), memory=bptt.Checkpoints(2, 6))
    assert loss.history == [6, 6] == calls
    assert int(loss.calls) == 2


def test_masked_steps_may_hold_anything():
    xs, ys = data()
    mask = torch.ones(T, 2, dtype=torch.bool)
    mask[-3:] = False
    ys[-3:] = torch.nan
    model = nn.LSTM(3, 4, dtype=F64)
    chunk = bptt.Chunk(xs, ys, None, mask)
    assert next(unroll(model, square, [chunk], memory=bptt.Checkpoints(2, 4))).loss.isfinite()
    with pytest.raises(ValueError, match="mixes"):
        next(unroll(model, MIXED["neighbours"], [chunk], memory=bptt.Checkpoints(2, 4)))
