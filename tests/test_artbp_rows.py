"""ARTBP with cuts of each row's own, and without its factors: exact expectations over all patterns."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import bptt

HAZARD = 1 / 3
LAW = bptt.ConstantLaw(mean_length=3)


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(-1)


class Case:
    """A model, a sequence, and the gradient under a strategy as one vector."""

    def __init__(self, kind: str, T: int, B: int, alike: bool = False):
        torch.manual_seed(3)
        cell = nn.GRUCell(2, 3).double()
        layers = {"torch": nn.GRU, "fused": bptt.nn.GRU}
        self.model = layers[kind](2, 3).double() if kind in layers else bptt.scan(lambda x, h: (h := cell(x, h), h))
        self.parameters = list((cell if kind == "step" else self.model).parameters())
        self.state = torch.randn(B, 3).double() if kind == "step" else torch.randn(1, B, 3).double()
        self.dim = 0 if kind == "step" else None
        self.chunk = torch.randn(T, B, 2).double(), torch.randn(T, B, 3).double()
        if alike:
            self.state = self.state[..., :1, :].expand_as(self.state).clone()
            self.chunk = tuple(x[:, :1].expand_as(x).clone() for x in self.chunk)
        self.T, self.B = T, B

    def gradient(self, strategy, **keywords) -> Tensor:
        for p in self.parameters:
            p.grad = None
        keywords = {"reduction": "sum", "state_batch_dim": self.dim} | keywords
        bptt.backward(self.model, square, self.chunk, self.state, strategy=strategy, **keywords)
        return torch.cat([p.grad.flatten() for p in self.parameters])

    def every_pattern(self, compensate=True):
        """(probability, gradient) of each pattern of cuts of the rows."""
        steps = list(itertools.product((True, False), repeat=self.B))
        for pattern in itertools.product(steps, repeat=self.T - 1):
            cuts = [cut for step in pattern for cut in step]
            probability = HAZARD ** sum(cuts) * (1 - HAZARD) ** (len(cuts) - sum(cuts))
            yield probability, self.gradient(scripted([*pattern, steps[0]], compensate))


def scripted(pattern, compensate=True):
    class Scripted(bptt.ARTBP):
        def windows(self, upto, draw):
            steps = iter(pattern)
            return super().windows(upto, lambda each_row: [0.0 if cut else 1 - 1e-9 for cut in next(steps)])

    return Scripted(LAW, per_row=True, compensate=compensate)


@pytest.mark.parametrize("kind", ["torch", "fused", "step"])
@pytest.mark.parametrize(("T", "B"), [pytest.param(4, 3, marks=pytest.mark.deep), (5, 2)])
def test_the_expectation_over_all_patterns_of_all_rows_is_the_full_gradient(kind, T, B):
    case = Case(kind, T, B)
    full = case.gradient(bptt.FullBPTT())
    total, mean = 0.0, torch.zeros_like(full)
    for probability, gradient in case.every_pattern():
        total += probability
        mean += probability * gradient
    assert total == pytest.approx(1, abs=1e-12)
    assert (mean - full).abs().max() < 1e-12


def moments(pairs):
    pairs = list(pairs)
    mean = sum(p * g for p, g in pairs)
    return mean, sum(p * (g - mean).square() for p, g in pairs)


@pytest.mark.parametrize("alike", [False, True])
def test_the_variance_of_rows_cut_on_their_own_adds_up(alike):
    T, B = 5, 2
    case = Case("fused", T, B, alike)
    _, variance = moments(case.every_pattern())
    rows = []
    for row in range(B):
        single = Case("fused", T, 1)
        single.model.load_state_dict(case.model.state_dict())
        single.chunk = tuple(x[:, row : row + 1] for x in case.chunk)
        single.state = case.state[:, row : row + 1]
        rows.append(moments(single.every_pattern())[1])
    assert (variance - sum(rows) / B**2).abs().max() < 1e-12
    if alike:  # shared cuts are those of one row
        assert (variance - rows[0] / B).abs().max() < 1e-12


def test_without_factors_it_is_biased_towards_short_lags():
    case = Case("fused", 4, 2)
    full = case.gradient(bptt.FullBPTT())
    mean, _ = moments(case.every_pattern(compensate=False))
    assert (mean - full).norm() > 0.01 * full.norm()
    nothing_cut = scripted([[False] * 2] * 4, compensate=False)
    torch.testing.assert_close(case.gradient(nothing_cut), full, rtol=1e-12, atol=0)


def test_shared_cuts_without_factors_are_plain_windows():
    found = list(bptt.ARTBP(LAW, compensate=False).windows(lambda t: min(t, 40), iter([0.9, 0.9, 0.1] * 14).__next__))
    assert [w.stop - w.start for w in found] == [3] * 13 + [1]
    assert not any(w.weights for w in found)


@pytest.mark.parametrize("every", [1, 3])
def test_one_row_draws_as_shared_cuts_do(every):
    case = Case("fused", 20, 1)

    def gradient(per_row):
        return case.gradient(bptt.ARTBP(LAW, every=every, per_row=per_row), generator=torch.Generator().manual_seed(5))

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-12, atol=1e-14)


def test_chunks_budgets_and_one_update_at_the_end():
    case = Case("torch", 12, 3)
    strategy = bptt.ARTBP(LAW, per_row=True)
    gradients = []
    for lengths, memory in (([12], None), ([5, 7], None), ([12], bptt.Checkpoints(2, 2))):
        for p in case.parameters:
            p.grad = None
        stream = list(zip(*(x.split(lengths) for x in case.chunk), strict=True))
        updates = list(
            bptt.unroll(
                case.model, square, stream, case.state, strategy=strategy, memory=memory, reduction="sum",
                generator=torch.Generator().manual_seed(1),
            )
        )  # fmt: skip
        assert [(u.t0, u.t1) for u in updates] == [(0, 12)]
        gradients.append(torch.cat([p.grad.flatten() for p in case.parameters]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("start", ["none", "tree", "function"])
def test_rows_are_found_without_a_state(start):
    case = Case("step", 6, 3)
    zeros = torch.zeros(3, 3).double()
    initial = {"none": None, "tree": zeros, "function": lambda: zeros.clone()}[start]
    case.state = zeros if initial is None else None
    generator = torch.Generator().manual_seed(2)
    case.gradient(bptt.ARTBP(LAW, per_row=True), initial_state=initial, generator=generator)
    reference = torch.Generator().manual_seed(2)
    torch.empty(6, 3, dtype=torch.float64).uniform_(generator=reference)
    assert torch.equal(generator.get_state(), reference.get_state())  # six draws of three rows


def test_unbatched_inputs_are_one_row():
    layer = bptt.nn.LSTM(2, 3).double()
    chunk = torch.randn(9, 2).double(), torch.randn(9, 3).double()
    gradients = []
    for per_row in (False, True):
        layer.zero_grad()
        strategy = bptt.ARTBP(LAW, per_row=per_row)
        bptt.backward(layer, square, chunk, strategy=strategy, generator=torch.Generator().manual_seed(0))
        gradients.append(layer.weight_hh_l0.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_bad_input():
    with pytest.raises(TypeError, match=r"ARTBP\(per_row=...\) must be True or False, not 1"):
        bptt.ARTBP(LAW, per_row=1)
    with pytest.raises(TypeError, match=r"ARTBP\(compensate=...\) must be True or False, not 'no'"):
        bptt.ARTBP(LAW, compensate="no")
    case = Case("step", 4, 2)
    with pytest.raises(ValueError, match=r"per_row=True\) cuts each batch row on its own.*state_batch_dim="):
        case.gradient(bptt.ARTBP(LAW, per_row=True), state_batch_dim=None)


def test_a_row_that_is_cut_gets_nothing_of_an_infinite_cotangent():
    state = torch.ones(2, 3, requires_grad=True)
    gated = bptt.scale_gradient(state, torch.tensor([0.0, 2.0]), 0)
    gated.backward(torch.tensor([[torch.inf] * 3, [1.0] * 3]))
    assert torch.equal(state.grad, torch.tensor([[0.0] * 3, [2.0] * 3]))
