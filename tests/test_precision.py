"""Mixed precision and accumulation: states as they were given, skipped steps, and the divisor of several updates."""

import copy

import pytest
import torch
from torch import nn

import bptt
from support import oracle

F64 = torch.float64
MSE = bptt.per_step(nn.MSELoss())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(slots=2, segment=2)], ids=["stored", "replayed"])
def test_a_state_is_carried_on_in_the_dtype_it_was_given_in(dtype, memory):
    """torch's RNN lowers its state under autocast; what the next window starts from, and what is asked for, doesn't."""
    model, seen = nn.RNN(3, 4), []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[1].dtype))
    stream = [(torch.randn(7, 2, 3), torch.randn(7, 2, 4))]
    with torch.autocast("cpu", dtype=dtype):
        assert model(torch.randn(1, 2, 3), torch.zeros(1, 2, 4))[1].dtype == dtype
        for update in bptt.unroll(model, MSE, stream, strategy=bptt.TruncatedBPTT(2, 3), memory=memory):
            assert update.state.dtype == torch.float32
    assert set(seen[1:]) <= {torch.float32, dtype}
    assert seen.count(torch.float32) > 4  # each window's and each segment's first call


def test_a_state_of_none_is_carried_on_in_float32():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(3, 4)

        def forward(self, inputs, state=None):
            return self.rnn(inputs, state)

    stream = [(torch.randn(7, 2, 3), torch.randn(7, 2, 4))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        updates = list(bptt.unroll(Model(), MSE, stream, strategy=bptt.TruncatedBPTT(2)))
    assert {update.state.dtype for update in updates} == {torch.float32}


def test_what_the_model_lowers_itself_stays_so():
    """Without autocast around the run, a state's dtype is the model's own affair."""
    weight = torch.tensor(0.5, requires_grad=True)
    model = bptt.scan(lambda x, s: (weight * s.float() + x, (weight * s.float() + x).bfloat16()))
    stream = [(torch.ones(4, 2), None)]
    for update in bptt.unroll(model, lambda y, _: y, stream, torch.zeros(2), strategy=bptt.TruncatedBPTT(2)):
        assert update.state.dtype == torch.bfloat16


def windows_by_hand(model, xs, ys, k, scaler, optimizer):
    """Truncated BPTT under fp16 autocast and a scaler, without bptt; the updates whose step was skipped."""
    state, skipped = torch.zeros(1, 2, 4), []
    for number, a in enumerate(range(0, len(xs), k)):
        with torch.autocast("cpu", dtype=torch.float16):
            outputs, after = model(xs[a : a + k], state)
            loss = (outputs.float() - ys[a : a + k]).square().mean((1, 2)).sum() / k
        scaler.scale(loss).backward()
        state, before = after.detach().float(), scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() < before:
            skipped.append(number)
    return skipped, state


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_a_step_that_overflows_is_skipped_and_the_stream_goes_on(kind):
    """fp16 on the CPU, a scale so large that the first gradients overflow: the same weights as by hand."""
    model = kind(3, 4)
    other = copy.deepcopy(model)
    xs, ys = torch.randn(40, 2, 3), torch.randn(40, 2, 4)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=100) for _ in range(2)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (model, other)]
    want, state = windows_by_hand(other, xs, ys, 4, scalers[1], optimizers[1])
    skipped, update = [], None
    with torch.autocast("cpu", dtype=torch.float16):
        updates = bptt.unroll(model, MSE, [(xs, ys)], strategy=bptt.TruncatedBPTT(4), scale=scalers[0].scale)
        for number, update in enumerate(updates):  # noqa: B007
            before = scalers[0].get_scale()
            scalers[0].step(optimizers[0])
            scalers[0].update()
            optimizers[0].zero_grad()
            if scalers[0].get_scale() < before:
                skipped.append(number)
    assert update is not None
    assert update.t1 == 40
    assert skipped == want
    assert 0 < len(skipped) < 10
    assert scalers[0].get_scale() == scalers[1].get_scale()
    oracle.assert_close(list(model.parameters()), list(other.parameters()), 1e-6)
    oracle.assert_close([update.state], [state], 1e-6)


@pytest.mark.parametrize(
    "strategy", [bptt.TruncatedBPTT(3, 5), bptt.ARTBP(bptt.ConstantLaw(mean_length=4)), bptt.FullBPTT()]
)
@pytest.mark.parametrize("divide", ["scale", "gradient"])
def test_four_accumulated_are_one_batch_four_times_as_large(strategy, divide):
    """Four streams of two rows, one step for an update of each: every loss divided by four, or the gradient."""

    def train(parts):
        torch.manual_seed(0)
        model = nn.GRU(3, 4, dtype=F64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        rows = torch.arange(8).chunk(parts)
        scale = 1 / parts if divide == "scale" else 1.0
        runs = [
            bptt.unroll(
                model,
                MSE,
                [(xs[:, own], ys[:, own])],
                strategy=strategy,
                scale=scale,
                generator=torch.Generator().manual_seed(3),
            )
            for own in rows
        ]
        steps = 0
        for _ in zip(*runs, strict=True):
            for p in model.parameters():
                p.grad.div_(1 if divide == "scale" else parts)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        return steps, list(model.parameters())

    xs, ys = torch.randn(19, 8, 3, dtype=F64), torch.randn(19, 8, 4, dtype=F64)
    (one, want), (four, got) = train(1), train(4)
    assert one == four
    oracle.assert_close(got, want, 1e-12)


def test_under_a_scale_below_one_a_gradient_is_still_looked_at():
    """Only what scales up is left to a scaler."""
    weight = torch.zeros((), dtype=F64, requires_grad=True)
    model = bptt.scan(lambda x, s: (x + (weight * s).sqrt(), s))
    with pytest.raises(bptt.NonFiniteGradientError):
        bptt.backward(model, lambda y, _: y, (torch.ones(3, dtype=F64), None), torch.ones((), dtype=F64), scale=0.25)
    assert weight.grad is None
