"""`evaluate`: the same chunks, no gradient, and nothing left changed."""

import dataclasses

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import NAMES, chunks, make, some_resets, square
from support.runs import engine, start

T = 9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuts", [(), (4,), tuple(range(T))])
@pytest.mark.parametrize("resets", [False, True])
def test_evaluate_equals_the_oracle(name, cuts, resets):
    case = make(name, T)
    is_start, mask = (some_resets(T, 2), ~some_resets(T, 2, seed=9)) if resets else (None, None)
    result = bptt.evaluate(engine(case), square, chunks(case.xs, case.ys, is_start, mask, cuts=cuts), **start(case))
    done = oracle.forward(case.problem(is_start=is_start, mask=mask), oracle.full(T)[0], None)
    oracle.assert_close([result.loss], [done.total])
    count = T if mask is None else float(mask.sum()) / 2
    oracle.assert_close([result.mean_loss], [done.total / count])
    oracle.assert_close(result.state, done.state)
    assert result.steps == T
    assert {f.name for f in dataclasses.fields(result)} >= {"loss", "mean_loss", "steps", "state", "aux"}
    assert not result.loss.requires_grad
    assert result.loss.shape == ()
    assert all(p.grad is None for p in case.parameters())
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.loss = 0


def test_goes_on_from_a_state():
    case = make("lstm2", T)
    whole = bptt.evaluate(case.model, square, [(case.xs, case.ys)])
    first = bptt.evaluate(case.model, square, [(case.xs[:4], case.ys[:4])])
    second = bptt.evaluate(case.model, square, [(case.xs[4:], case.ys[4:])], first.state)
    oracle.assert_close([first.loss + second.loss], [whole.loss])
    oracle.assert_close(second.state, whole.state)


class Noisy(nn.Module):
    """Dropout, a mode, and a nested module whose mode differs from its parent's."""

    def __init__(self):
        super().__init__()
        self.gru, self.drop, self.still = nn.GRU(3, 4, dtype=torch.float64), nn.Dropout(0.5), nn.Dropout(0.5)
        self.still.eval()

    def forward(self, inputs, state):
        outputs, state = self.gru(self.drop(inputs), state)
        return self.still(outputs), state


@pytest.mark.parametrize("training", [True, False])
def test_modes_random_numbers_and_gradients_are_left_alone(training):
    case, model = make("gru", T), Noisy()
    model.train(training)
    model.still.eval()
    modes = [m.training for m in model.modules()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = torch.get_rng_state()
    bptt.evaluate(model, square, chunks(case.xs, case.ys, cuts=(3,)), case.zeros())
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert torch.is_grad_enabled()


def test_time_axis():
    case = make("gru", T)
    model = nn.GRU(3, 4, batch_first=True, dtype=torch.float64)
    model.load_state_dict(case.model.state_dict())
    stream = [tuple(v[a:b].transpose(0, 1) for v in (case.xs, case.ys)) for a, b in ((0, 2), (2, T))]
    result = bptt.evaluate(model, square, stream, time_dim=1)
    oracle.assert_close([result.loss], [bptt.evaluate(case.model, square, [(case.xs, case.ys)]).loss])


def test_inputs_with_a_graph_need_no_refusal():
    """There is no gradient to lose: what carries a graph is evaluated like anything else."""
    case, lift = make("gru", T), nn.Linear(3, 3, dtype=torch.float64)
    result = bptt.evaluate(case.model, square, [(lift(case.xs), case.ys)])
    with torch.no_grad():
        same = bptt.evaluate(case.model, square, [(lift(case.xs), case.ys)])
    oracle.assert_close([result.loss], [same.loss])
    assert not result.loss.requires_grad


def test_needs_no_storage_for_gradients():
    case, saved = make("lstm", T), []

    def model(inputs, state):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            return case.model(inputs, state)

    bptt.evaluate(model, square, [(case.xs, case.ys)], case.zeros())
    assert not saved
