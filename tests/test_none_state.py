"""Recurrences that start by themselves from None, states with None in them, and no state at all."""

import pytest
import torch
from torch import nn

import bptt

T, B = 14, 3
X, Y = torch.randn(2, T, B, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
STARTS = torch.zeros(T, B, dtype=torch.bool)
STARTS[0, 1] = STARTS[5, 0] = STARTS[6, 0] = True
STARTS[9] = True
LOSS = bptt.per_step(nn.MSELoss())
ZEROS = torch.zeros(B, 4, dtype=torch.float64)
BUDGETS = [None, bptt.Checkpoints(2, 3), "8KiB"]
LAW = bptt.PolynomialLaw(3, 5)
STRATEGIES = [
    bptt.FullBPTT(),
    bptt.TruncatedBPTT(3),
    bptt.TruncatedBPTT(2, 5),
    bptt.TruncatedBPTT(2, 4, burn_in=3),
    bptt.ARTBP(LAW),
    bptt.ARTBP(LAW, per_row=True),
]


class Own(nn.Module):
    """Zeros where there is no state; the same cell, so the same parameters in any model below."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.cell = nn.GRUCell(4, 4).double()

    def forward(self, x, state=None):
        h, outputs = x.new_zeros(x.shape[1], 4) if state is None else state, []
        for x_t in x:
            h = self.cell(x_t, h)
            outputs.append(h)
        return torch.stack(outputs), h


class Explicit(Own):
    """Without a default."""

    def forward(self, x, state):
        return super().forward(x, state)


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("starts", [None, STARTS, STARTS.any(1)], ids=["", "rows", "all"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_as_from_zeros(strategy, starts):
    for memory in BUDGETS:
        found = []
        for model, options in (
            (Explicit(), {"initial_state": ZEROS}),
            (Own(), {}),
            (bptt.scan(Own().cell), {}),  # torch's cells take None as well
        ):
            generator = torch.Generator().manual_seed(1)
            options |= {"strategy": strategy, "memory": memory, "generator": generator, "state_batch_dim": 0}
            update = bptt.backward(model, LOSS, bptt.Chunk(X, Y, starts), **options)
            found.append((gradient(model), update.loss, update.state))
        for other in found[1:]:
            for ours, theirs in zip(other, found[0], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_batch_first_with_resets_of_rows():
    class First(Own):
        def forward(self, x, state=None):
            y, state = super().forward(x.transpose(0, 1), state)
            return y.transpose(0, 1), state

    turned = bptt.Chunk(*(t.transpose(0, 1) for t in (X, Y, STARTS)))
    first, own = First(), Own()
    bptt.backward(first, LOSS, turned, time_dim=1, state_batch_dim=0)
    bptt.backward(own, LOSS, bptt.Chunk(X, Y, STARTS), state_batch_dim=0)
    torch.testing.assert_close(gradient(first), gradient(own), rtol=1e-12, atol=1e-14)


def test_masks_shelter_dead_steps_too():
    mask = torch.ones(T, B, dtype=torch.bool)
    mask[8:, 0] = False
    x = X.clone()
    x[9:, 0] = torch.nan
    found = []
    for model, options in ((Explicit(), {"initial_state": ZEROS}), (Own(), {})):
        bptt.backward(model, LOSS, bptt.Chunk(x, Y, mask=mask), state_batch_dim=0, **options)
        found.append(gradient(model))
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_clipped_cotangents():
    found = []
    for model, options in ((Explicit(), {"initial_state": ZEROS}), (Own(), {})):
        bptt.backward(model, LOSS, (X, Y), clip_cotangent=1e-3, state_batch_dim=0, **options)
        found.append(gradient(model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_the_analyses_take_it():
    options = {"state_batch_dim": 0}
    with torch.no_grad():
        mean = (Own()(X)[0] - Y).square().mean()
    assert bptt.evaluate(Own(), LOSS, [(X[:5], Y[:5]), (X[5:], Y[5:])]).mean_loss == pytest.approx(mean.item())
    compared = bptt.compare(Own(), LOSS, (X, Y), strategies=[bptt.TruncatedBPTT(1, T + 1), bptt.TruncatedBPTT(2)])
    assert compared.entries[0].bias.value < 1e-12 < 1e-3 < compared.entries[1].bias.value
    assert (
        bptt.plan(Own(), LOSS, (X, Y), steps=100, memory="20KiB", strategies=[bptt.FullBPTT()]).best.memory_bytes
        <= 20 * 1024
    )
    found = bptt.diagnose(Own(), LOSS, (X, Y), max_lag=5, **options)
    exact = bptt.diagnose(Explicit(), LOSS, (X, Y), ZEROS, max_lag=5, **options)
    torch.testing.assert_close(found.norms[:, 5:], exact.norms[:, 5:])
    assert not found.norms[0, 0].any()  # there is no state before step 0
    assert exact.norms[0, 0].all()
    updates = bptt.unroll(Own(), LOSS, [(X, Y)], strategy=bptt.AdaptiveTruncatedBPTT(k_max=6, window=5), **options)
    assert sum(u.steps for u in updates) == T


def test_no_state_at_all():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    (layer(X) - Y).square().mean((1, 2)).sum().backward()
    exact = gradient(layer)
    for state in (None, (), {}, [None]):
        for options in ({}, {"memory": bptt.Checkpoints(2, 3)}, {"strategy": bptt.TruncatedBPTT(2, 4)}):
            layer.zero_grad()
            bptt.backward(lambda x, s=None: (layer(x), s), LOSS, (X, Y), state, reduction="sum", **options)
            torch.testing.assert_close(gradient(layer), exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 3)], ids=str)
def test_none_among_the_leaves_is_carried_as_it_is(strategy, memory):
    found = []
    for with_none in (False, True):
        cell = Own().cell

        def step(x, state, cell=cell, with_none=with_none):
            h = cell(x, state["h"][-1])
            return h, {"none": None, "h": (None, h)} if with_none else {"h": (h,)}

        state = {"h": (None, ZEROS), "none": None} if with_none else {"h": (ZEROS,)}
        dims = {"h": (None, 0), "none": None} if with_none else 0
        options = {"strategy": strategy, "memory": memory, "generator": torch.Generator().manual_seed(1)}
        chunk = bptt.Chunk(X, Y, STARTS)
        update = bptt.backward(
            bptt.scan(step), LOSS, chunk, state, initial_state=state, state_batch_dim=dims, **options
        )
        found.append(gradient(cell))
        assert (update.state["h"][0] is None) == with_none
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_none_that_turns_into_a_tensor_is_another_structure():
    def step(x, state):
        return x, [x, x]

    with pytest.raises(
        ValueError, match=r"different structure from the one it was given: \[\*, \*\] against \[None, \*\]"
    ):
        bptt.backward(bptt.scan(step), LOSS, (X.requires_grad_(), Y), [None, ZEROS])


def test_what_cannot_start_by_itself():
    with pytest.raises(
        ValueError, match=r"has no default state: pass state= .*, and recurrences \(inputs, state=None\)"
    ):
        bptt.backward(Explicit(), LOSS, (X, Y))
    with pytest.raises(ValueError, match=r"say which axis of the state holds the batch, state_batch_dim="):
        bptt.backward(Own(), LOSS, bptt.Chunk(X, Y, STARTS))
    with pytest.raises(ValueError, match=r"state_batch_dim=5: state of shape \(3, 4\) has no such axis"):
        bptt.backward(Own(), LOSS, (X, Y), state_batch_dim=5)


class GoesOn(nn.Module):
    """For it None means to go on from the last call."""

    def __init__(self):
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))
        self.membrane = torch.zeros(1, dtype=torch.float64)

    def forward(self, x, membrane=None):
        self.membrane = self.membrane if membrane is None else membrane
        self.membrane = self.decay * self.membrane + x
        return self.membrane, self.membrane


@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 3)], ids=str)
@pytest.mark.parametrize("state", [None, ZEROS], ids=["at the start", "at a reset"])
def test_none_that_means_to_go_on_is_refused(state, memory):
    """The second call with None would use what the first has left: another loss, and no error."""
    chunk = bptt.Chunk(X, Y, None if state is None else STARTS)
    for strategy in (bptt.FullBPTT(), bptt.TruncatedBPTT(7)):
        with pytest.raises(
            ValueError, match=r"the attribute step\.membrane: .* a call with state=None is to start afresh"
        ):
            bptt.backward(bptt.scan(GoesOn()), LOSS, chunk, state, strategy=strategy, memory=memory, state_batch_dim=0)
    bptt.backward(bptt.scan(GoesOn()), LOSS, (X, Y), ZEROS)
    bptt.backward(bptt.scan(GoesOn()), LOSS, chunk, initial_state=ZEROS, state_batch_dim=0)
