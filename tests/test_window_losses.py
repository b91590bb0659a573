"""Losses of whole windows against plain autograd on the same windows, step by step and with resets."""

import pytest
import torch
from torch import nn

import bptt

T, B = 23, 3
X, Y = torch.randn(2, T, B, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
STARTS = torch.zeros(T, B, dtype=torch.bool)
STARTS[5, 0] = STARTS[16, 1] = True
STARTS[9] = True
BUDGETS = [None, bptt.Checkpoints(2, 3), bptt.Checkpoints(1, 1), "6KiB"]
STRATEGIES = [bptt.FullBPTT(), bptt.TruncatedBPTT(5), bptt.TruncatedBPTT(4, 9), bptt.TruncatedBPTT(3, 5)]


def energy(outputs, targets):
    """An error-to-signal ratio with a term for the offset."""
    offset = (outputs.mean() - targets.mean()).square() / (targets.mean().square() + 1e-3)
    return (outputs - targets).square().sum() / targets.square().sum() + offset


def spectral(outputs, targets):
    """Magnitudes of spectra at two resolutions."""
    pairs = [[torch.fft.rfft(tree, n=n, dim=0).abs() for tree in (outputs, targets)] for n in (4, 8)]
    return sum((a - b).square().mean() for a, b in pairs)


def policy(outputs, targets):
    """A policy gradient with advantages normalised over the window."""
    advantages = targets.sum(2)
    advantages = (advantages - advantages.mean()) / (advantages.std(unbiased=False) + 1e-8)
    return -(outputs.log_softmax(2)[..., 0] * advantages).mean()


class Learned(nn.Module):
    """A loss with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 0.5, 2.0, 0.1], dtype=torch.float64))

    def forward(self, outputs, targets):
        return (outputs * self.scale - targets).square().sum() / targets.square().sum()


def layer():
    torch.manual_seed(1)
    return nn.GRU(4, 4).double()


def gradients(*modules):
    return torch.cat([p.grad.flatten() for m in modules for p in m.parameters()])


def by_hand(model, function, strategy, starts):
    """The sum over the strategy's windows, each a graph of its own from the state that was carried; its value."""

    def step(t, h):
        return model(X[t : t + 1], h if starts is None else torch.where(starts[t][None, :, None], 0.0, h))

    k1, k2 = (T, T) if isinstance(strategy, bptt.FullBPTT) else (strategy.k1, strategy.reach)
    states, total = [torch.zeros(1, B, 4, dtype=torch.float64)], 0.0
    with torch.no_grad():
        for t in range(T):
            states.append(step(t, states[t])[1])
    for a in range(0, T, k1):
        start, stop = max(0, a - (k2 - k1)), min(a + k1, T)
        h, outputs = states[start], []
        for t in range(start, stop):
            y, h = step(t, h)
            outputs.append(y)
        value = function(torch.cat(outputs)[a - start :], Y[a:stop])
        value.backward()
        total += value.item()
    return total


@pytest.mark.parametrize("starts", [None, STARTS], ids=["", "resets"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize(
    "make", [lambda: energy, lambda: spectral, lambda: policy, Learned], ids=["esr", "mss", "pg", "nn"]
)
@pytest.mark.thin
def test_gradient_is_that_of_the_same_windows(make, strategy, starts):
    model, function = layer(), make()
    modules = [model, *([function] if isinstance(function, nn.Module) else [])]
    value = by_hand(model, function, strategy, starts)
    exact = gradients(*modules)
    for memory in BUDGETS:
        for module in modules:
            module.zero_grad()
        chunk = bptt.Chunk(X, Y, starts)
        update = bptt.backward(model, bptt.per_window(function), chunk, strategy=strategy, memory=memory)
        torch.testing.assert_close(gradients(*modules), exact, rtol=1e-12, atol=1e-13)
        assert update.loss.item() == pytest.approx(value, rel=1e-12)
        if memory == "6KiB":
            assert update.memory_bytes <= 6 * 1024 + Y.nbytes


def test_chunks_of_any_length_and_one_update_a_window():
    model, loss = layer(), bptt.per_window(energy)
    whole = [u.loss for u in bptt.unroll(model, loss, [(X, Y)], strategy=bptt.TruncatedBPTT(5, 8))]
    exact = gradients(model)
    model.zero_grad()
    pieces = [(X[a : a + 3], Y[a : a + 3]) for a in range(0, T, 3)]
    updates = list(bptt.unroll(model, loss, pieces, strategy=bptt.TruncatedBPTT(5, 8), reduction="sum"))
    torch.testing.assert_close(gradients(model), exact)
    assert [u.loss for u in updates] == whole == [u.mean_loss for u in updates]
    assert len(updates) == 5


def test_ctc_by_a_closure():
    model, labels = layer(), torch.randint(1, 4, (B, 5), generator=torch.Generator().manual_seed(0))
    lengths = torch.full((B,), T), torch.full((B,), 5)

    def ctc(outputs, targets):
        return nn.functional.ctc_loss(outputs.log_softmax(2), labels, *lengths)

    ctc(model(X)[0], None).backward()
    exact = gradients(model)
    for memory in (None, "6KiB"):
        model.zero_grad()
        bptt.backward(model, bptt.per_window(ctc), (X, None), memory=memory)
        torch.testing.assert_close(gradients(model), exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 4)], ids=str)
def test_the_mask_is_handed_on_and_keeps_a_nan_out(memory):
    mask = torch.rand(T, B, generator=torch.Generator().manual_seed(0)) > 0.4
    x = torch.where(mask[..., None], X, torch.nan)
    x[:2] = X[:2]  # a row's dead steps may hold anything; those that others follow may not
    mask[:2] = True
    x = torch.where(mask.flip(0).cummax(0).values.flip(0)[..., None], X, x)

    def ratio(outputs, targets, mask):
        kept = mask[..., None]
        return (torch.where(kept, outputs - targets, 0.0).square().sum()) / (targets * kept).square().sum()

    model = layer()
    ratio(model(X)[0], Y, mask).backward()
    exact = gradients(model)
    model.zero_grad()
    bptt.backward(model, bptt.per_window(ratio), bptt.Chunk(x, Y, mask=mask), memory=memory)
    torch.testing.assert_close(gradients(model), exact, rtol=1e-12, atol=1e-14)


def test_noise_is_the_same_in_all_passes():
    loss = bptt.per_window(energy)

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.drop = layer(), nn.Dropout(0.5)

        def forward(self, x, state):
            h, state = self.layer(x, state)
            return self.drop(h), state

    model, h0 = Noisy(), torch.zeros(1, B, 4, dtype=torch.float64)
    found = []
    for schedule in (bptt.Checkpoints(9, 4), bptt.Checkpoints(1, 4)):
        model.zero_grad()
        torch.manual_seed(5)
        found.append((bptt.backward(model, loss, (X, Y), h0, memory=schedule).loss, gradients(model)))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-14)


def test_aux_of_each_window():
    loss = bptt.per_window(lambda o, t: (energy(o, t), {"peak": o.max(), "n": torch.tensor(len(o))}))
    updates = list(bptt.unroll(layer(), loss, [(X, Y)], strategy=bptt.TruncatedBPTT(10)))
    assert [int(u.aux["n"]) for u in updates] == [10, 10, 3]
    merged = bptt.backward(layer(), loss, (X, Y), strategy=bptt.TruncatedBPTT(10))
    assert merged.aux["n"].tolist() == [10, 10, 3]
    assert merged.mean_loss == pytest.approx((merged.loss / 3).item())
    assert bptt.evaluate(layer(), loss, [(X, Y)], window=10).aux["n"].tolist() == [10, 10, 3]


def test_evaluate_takes_the_whole_stream_or_windows():
    model, loss = layer(), bptt.per_window(energy)
    with torch.no_grad():
        outputs = model(X)[0]
    pieces = [(X[a : a + 4], Y[a : a + 4]) for a in range(0, T, 4)]
    assert bptt.evaluate(model, loss, pieces).loss == pytest.approx(energy(outputs, Y).item())
    found = bptt.evaluate(model, loss, pieces, window=6)
    values = [energy(outputs[a : a + 6], Y[a : a + 6]).item() for a in range(0, T, 6)]
    assert found.loss == pytest.approx(sum(values))
    assert found.mean_loss == pytest.approx(sum(values) / 4)


def test_compare_takes_each_strategy_at_its_own_windows():
    """A ratio over short windows is another objective than one over the whole: that difference is no bias."""
    model, loss = layer(), bptt.per_window(energy)
    listed = [bptt.FullBPTT(), bptt.TruncatedBPTT(5), bptt.TruncatedBPTT(5, T + 4)]
    full, short, whole = bptt.compare(model, loss, (X, Y), strategies=listed).entries
    assert full.bias.value == 0
    assert short.bias.value > 0.01
    assert whole.bias.value < 1e-12
    by_hand(model, energy, bptt.TruncatedBPTT(5, T + 4), None)
    exact = gradients(model)
    model.zero_grad()
    by_hand(model, energy, bptt.TruncatedBPTT(5), None)
    assert short.bias.value == pytest.approx(((gradients(model) - exact).norm() / exact.norm()).item(), rel=1e-9)


@pytest.mark.deep
def test_plan_counts_the_outputs():
    model, loss = layer(), bptt.per_window(energy)
    found = bptt.plan(model, loss, (X, Y), steps=200, memory="40KiB", strategies=[bptt.FullBPTT()])
    row = found.best
    chunk = X.repeat(10, 1, 1)[:200], Y.repeat(10, 1, 1)[:200]
    update = bptt.backward(model, loss, chunk, memory=row.memory)
    assert update.forward_steps == row.forward_steps
    assert update.memory_bytes == pytest.approx(row.memory_bytes, rel=0.05)  # lines are drawn with a margin
    assert row.memory_bytes <= 40 * 1024
    assert not any("ARTBP" in str(row.strategy) for row in bptt.plan(model, loss, (X, Y), steps=65).rows)


def test_a_loss_that_is_not_finite_stops_before_the_gradient():
    model, loss = layer(), bptt.per_window(lambda o, t: energy(o, t) / t.sum().clamp(max=0.0))
    for memory in (None, bptt.Checkpoints(1, 4)):
        with pytest.raises(bptt.NonFiniteLossError, match=r"the loss of steps 0 to 22 is inf: no update") as error:
            bptt.backward(model, loss, (X, Y.abs()), memory=memory)
        assert error.value.step == 0
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("strategy", [bptt.ARTBP(), bptt.ARTBP(per_row=True), bptt.AdaptiveTruncatedBPTT()], ids=str)
def test_windows_that_are_drawn_or_found_are_refused(strategy):
    for call in (
        lambda: bptt.unroll(layer(), bptt.per_window(energy), [(X, Y)], strategy=strategy),
        lambda: bptt.backward(layer(), bptt.per_window(energy), (X, Y), strategy=strategy),
        lambda: bptt.compare(layer(), bptt.per_window(energy), (X, Y), strategies=[strategy]),
    ):
        with pytest.raises(ValueError, match=r"at random or as it goes, .* use bptt\.FullBPTT\(\) or"):
            call()


def test_what_cannot_be():
    mask = torch.rand(T, B) > 0.5
    with pytest.raises(TypeError, match=r"hands to its function as a third argument"):
        bptt.backward(layer(), bptt.per_window(energy), bptt.Chunk(X, Y, mask=mask))
    with pytest.raises(TypeError, match=r"must return a floating 0-d tensor, not shape \(23, 3, 4\)"):
        bptt.backward(layer(), bptt.per_window(lambda o, t: o - t), (X, Y))
    with pytest.raises(TypeError, match=r"diagnose: credit by lag is that of single steps"):
        bptt.diagnose(layer(), bptt.per_window(energy), (X, Y))
    with pytest.raises(TypeError, match=r"per_window's function must be a function or module, not int"):
        bptt.per_window(3)
    with pytest.raises(TypeError, match=r"can't be called as function\(outputs, targets\), or"):
        bptt.per_window(lambda outputs: outputs)
    with pytest.raises(TypeError, match=r"per_window\(Learned\): this is a class"):
        bptt.per_window(Learned)
    with pytest.raises(ValueError, match=r"window=5 is for losses by per_window"):
        bptt.evaluate(layer(), bptt.per_step(nn.MSELoss()), [(X, Y)], window=5)
    with pytest.raises(ValueError, match=r"window must be a whole number"):
        bptt.evaluate(layer(), bptt.per_window(energy), [(X, Y)], window=0)


def test_a_loss_by_step_that_mixes_steps_is_told_of_per_window():
    mixing = lambda outputs, targets: (outputs - targets).square().mean((1, 2)) / targets.square().sum()  # noqa: E731
    with pytest.raises(ValueError, match=r"mixes time steps: .* by bptt\.per_window, or give memory=None"):
        bptt.backward(layer(), mixing, (X, Y), memory=bptt.Checkpoints(2, 4))
