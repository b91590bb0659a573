"""What an update is: every loss once, its fields, its divisor, and the merged one of `backward`."""

import dataclasses
import gc
import itertools
import math

import pytest
import torch

import bptt
from support import oracle
from support.cases import make, some_resets, square
from support.runs import check, engine, gradient, start, unroll
from support.strategies_under_test import ALL, CUTTING, FIXED, STRATEGIES, Table, windows

FIELDS = {
    "t0",
    "t1",
    "start",
    "loss",
    "mean_loss",
    "steps",
    "state",
    "cotangent_norm",
    "aux",
    "forward_steps",
    "memory_bytes",
}


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 2)], ids=["stored", "replayed"])
def test_every_loss_is_injected_exactly_once(strategy, memory):
    """A weight per step in the loss: the gradient with respect to it counts the injections of that step."""
    case = make("gru", 13)
    weight = torch.ones(13, 1, 1, dtype=torch.float64, requires_grad=True)

    def loss(outputs, targets):
        index = targets[:, 0, 0].to(torch.int64)
        return (outputs - outputs).detach() + weight[index] + 0 * outputs

    case.ys = torch.arange(13, dtype=torch.float64)[:, None, None].expand(13, 2, 4)
    updates = list(unroll(case, strategy, loss=loss, cuts=(2, 3, 9), memory=memory))
    assert torch.equal(weight.grad.flatten(), torch.ones(13, dtype=torch.float64))
    assert [u.t0 for u in updates] == [0, *(u.t1 for u in updates[:-1])]
    assert updates[-1].t1 == 13


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(1, 2)], ids=["stored", "replayed"])
def test_fields_of_an_update(strategy, memory):
    case, mask = make("lstm", 11), ~some_resets(11, 2)
    updates, carried = [], None
    run = unroll(case, strategy, cuts=(4, 5), memory=memory, mask=mask)
    for update in run:
        updates.append(update)
        assert set(dir(update)) >= FIELDS
        for name in ("loss", "mean_loss", "cotangent_norm"):
            value = getattr(update, name)
            assert isinstance(value, torch.Tensor)
            assert value.shape == ()
            assert not value.requires_grad
        assert not any(leaf.requires_grad for leaf in oracle.leaves(update.state))
        assert update.steps == update.t1 - update.t0
        assert isinstance(update.forward_steps, int)
        with pytest.raises(dataclasses.FrozenInstanceError):
            update.loss = 0
    problem = case.problem(mask=mask)
    for update, window in zip(updates, windows(strategy, 11, updates), strict=True):
        done = oracle.forward(problem, window, carried)
        carried = done.kept
        assert (update.start, update.t0, update.t1) == (window.start, window.first, window.stop)
        oracle.assert_close([update.loss], [done.total])
        oracle.assert_close(update.state, done.state)
        entering = torch.autograd.grad(done.total, done.entering, allow_unused=True)
        norm = math.sqrt(sum(float(g.square().sum()) for g in entering))
        assert float(update.cotangent_norm) == pytest.approx(norm, rel=1e-12)
        count = float(mask[window.first : window.stop].sum()) / 2
        if count:
            assert float(update.mean_loss) == pytest.approx(float(update.loss) / count, rel=1e-13)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_divisors(name, reduction):
    """ "mean" divides by k1, full by the stream's steps; short last blocks and masks don't change it."""
    strategy, case, mask = STRATEGIES[name], make("gru", 10), ~some_resets(10, 2)
    divisor = 1
    if reduction == "mean":
        divisor = 10 if isinstance(strategy, bptt.FullBPTT) else strategy.k1
    problem = case.problem(mask=mask)
    want = oracle.gradient_of(problem, windows(strategy, 10), case.parameters(), divisor)
    for memory in (None, bptt.Checkpoints(2, 1)):
        got, updates = gradient(case, strategy, mask=mask, reduction=reduction, cuts=(4,), memory=memory)
        oracle.assert_close(got, want)
        losses = [done.total for done in oracle.run(problem, windows(strategy, 10))]
        oracle.assert_close([u.loss for u in updates], losses)  # never divided
        oracle.gradients(case.parameters())


@pytest.mark.parametrize("name", FIXED)
def test_backward_divides_by_the_length(name):
    strategy, case = STRATEGIES[name], make("lstm", 10)
    want = oracle.gradient_of(case.problem(), windows(strategy, 10), case.parameters(), 10)
    update = bptt.backward(case.model, square, (case.xs, case.ys), strategy=strategy)
    oracle.assert_close(oracle.gradients(case.parameters()), want)
    assert (update.t0, update.t1, update.start, update.steps) == (0, 10, 0, 10)
    problem = case.problem()
    *_, last = done = list(oracle.run(problem, windows(strategy, 10)))
    oracle.assert_close([update.loss], [sum(d.total for d in done)])
    oracle.assert_close([update.mean_loss], [update.loss / 10])
    oracle.assert_close(update.state, last.state)


def test_mean_is_the_default():
    case = make("gru", 6)
    want = [g / 3 for g in gradient(case, bptt.TruncatedBPTT(3))[0]]
    for _ in bptt.unroll(case.model, square, [(case.xs, case.ys)], strategy=bptt.TruncatedBPTT(3)):
        pass
    oracle.assert_close(oracle.gradients(case.parameters()), want)


def test_loss_is_averaged_over_all_axes_but_time():
    case = make("gru", 5, B=3)

    def rows(outputs, targets):
        return square(outputs, targets).mean(-1)  # (T, B)

    def steps(outputs, targets):
        return square(outputs, targets).mean((1, 2))  # (T,)

    want = gradient(case, bptt.TruncatedBPTT(2, 3))[0]
    for loss in (rows, steps):
        oracle.assert_close(gradient(case, bptt.TruncatedBPTT(2, 3), loss=loss)[0], want)


@pytest.mark.parametrize("kind", ["number", "tensor", "function"])
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 2)], ids=["stored", "replayed"])
def test_scale_multiplies_the_injected_gradient_only(kind, memory):
    case = make("gru", 9)
    scale = {"number": 1024.0, "tensor": torch.tensor(1024.0), "function": lambda t: t * 1024.0}[kind]
    for more in ({}, {"reduction": "mean"}, {"clip_cotangent": 0.02}):
        want, plain = gradient(case, bptt.TruncatedBPTT(3, 5), **more)
        got, scaled = gradient(case, bptt.TruncatedBPTT(3, 5), scale=scale, memory=memory, **more)
        oracle.assert_close([g / 1024 for g in got], want)
        oracle.assert_close([u.loss for u in scaled], [u.loss for u in plain])


def test_targets_none_and_pytrees():
    case = make("dict", 8)
    model = engine(case)

    def loss(outputs, targets):
        assert targets is None
        return outputs.square()

    stream = [(case.xs[:3], None), (case.xs[3:], None)]
    for _ in bptt.unroll(model, loss, stream, strategy=bptt.TruncatedBPTT(2, 4), reduction="sum", **start(case)):
        pass
    got = oracle.gradients(case.parameters())
    case.ys = None
    oracle.assert_close(got, oracle.gradient_of(case.problem(loss=loss), oracle.truncated(2, 4, 8), case.parameters()))


def test_chunk_is_a_named_tuple_with_defaults():
    chunk = bptt.Chunk(1, 2)
    assert tuple(chunk) == (1, 2, None, None)
    assert chunk._fields == ("inputs", "targets", "is_start", "mask")
    case, is_start = make("gru", 6), some_resets(6, 2)
    named = [bptt.Chunk(case.xs, case.ys, is_start=is_start)]
    for _ in bptt.unroll(case.model, square, named, strategy=bptt.TruncatedBPTT(2), reduction="sum"):
        pass
    got = oracle.gradients(case.parameters())
    oracle.assert_close(got, gradient(case, bptt.TruncatedBPTT(2), is_start=is_start)[0])


def test_a_single_row():
    check(make("lstm2", 7, B=1), bptt.TruncatedBPTT(2, 3))
    check(make("dict", 7, B=1), bptt.FullBPTT(), memory=bptt.Checkpoints(1, 1))


def test_a_window_without_a_valid_step():
    case, mask = make("gru", 6), torch.ones(6, 2, dtype=torch.bool)
    mask[2:4] = False
    means = [float(u.mean_loss) for u in unroll(case, bptt.TruncatedBPTT(2), mask=mask)]
    assert means[1] == 0
    assert means[0] > 0 < means[2]


def test_two_runs_side_by_side():
    """Nothing is shared between runs: taken in turns they give what they give alone."""
    cases = [make("lstm", 12), make("dict", 12)]
    budgets = [None, bptt.Checkpoints(2, 1)]
    alone = [gradient(c, bptt.TruncatedBPTT(2, 5), memory=m)[0] for c, m in zip(cases, budgets, strict=True)]
    runs = [unroll(c, bptt.TruncatedBPTT(2, 5), memory=m) for c, m in zip(cases, budgets, strict=True)]
    for pair in zip(*runs, strict=True):
        assert pair[0].t1 == pair[1].t1
    for case, want in zip(cases, alone, strict=True):
        oracle.assert_close(oracle.gradients(case.parameters()), want, 0.0)


def test_evaluation_between_updates_changes_nothing():
    case = make("lstm2", 12)
    want, _ = gradient(case, bptt.TruncatedBPTT(2, 5))
    for update in unroll(case, bptt.TruncatedBPTT(2, 5)):
        bptt.evaluate(case.model, square, [(case.xs, case.ys)], update.state)
    oracle.assert_close(oracle.gradients(case.parameters()), want, 0.0)


@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 2)], ids=["stored", "replayed"])
@pytest.mark.parametrize("name", ["gru2", "named", "complex"])
def test_weights_that_differ_by_row(memory, name):
    case = make(name, 9, B=3)
    weights = {t: torch.rand(3, dtype=torch.float64) * 2 for t in (2, 3, 7)} | {
        5: torch.tensor([0.0, 1.0, 2.0]),
        8: 1.5,
    }
    table = [oracle.Window(0, 0, 4, 1, weights), oracle.Window(1, 4, 9, 9, weights)]
    weights = {t: torch.as_tensor(w, dtype=torch.float64) for t, w in weights.items()}
    problem = case.problem()
    want = oracle.gradient_of(problem, [w._replace(weights=weights) for w in table], case.parameters())
    got, updates = gradient(case, Table(table), memory=memory, state_batch_dim=case.batch_dim, cuts=(6,))
    oracle.assert_close(got, want)
    assert [(u.start, u.t0, u.t1) for u in updates] == [(0, 0, 4), (1, 4, 9)]


def test_sums_in_low_precision():
    """Losses in bfloat16 are summed, and valid steps counted, in more than eight bits."""
    case, mask = make("gru", 1003, B=1, hidden=1, dtype=torch.bfloat16), torch.ones(1003, 1, dtype=torch.bool)
    mask[0] = False

    def ones(outputs, targets):
        return 0 * outputs + 1

    for strategy in (bptt.FullBPTT(), bptt.TruncatedBPTT(1003)):
        (update,) = unroll(case, strategy, mask=mask, loss=ones, memory=bptt.Checkpoints(2, 300))
        assert float(update.loss) == 1002
        assert float(update.mean_loss) == pytest.approx(1, rel=1e-6)
    result = bptt.evaluate(case.model, ones, [(case.xs, case.ys, None, mask)])
    assert float(result.mean_loss) == pytest.approx(1, rel=1e-6)


def test_backward_holds_no_state_per_window():
    """Tensors that live on during a merged run: one loss per window, until a block of them is summed (invariant 8)."""
    case, calls, alive = make("gru", 600, B=1), itertools.count(), []

    def loss(outputs, targets):
        if next(calls) in (100, 500):
            alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
        return square(outputs, targets)

    leaf = case.xs.clone().requires_grad_()
    bptt.backward(case.model, loss, (leaf, case.ys), strategy=bptt.TruncatedBPTT(1, 3))
    assert len(alive) == 2
    assert alive[1] - alive[0] <= 410


def test_results_can_be_compared():
    """Tensors have no truth value; so results are equal to themselves alone, and windows by the values of weights."""
    model, data = torch.nn.GRU(3, 4), (torch.ones(5, 2, 3), torch.ones(5, 2, 4))
    first, second = (bptt.backward(model, square, data) for _ in range(2))
    assert first == first
    assert first != second
    assert len({first, second}) == 2
    evaluation = bptt.evaluate(model, square, [data])
    assert evaluation == evaluation
    diagnosis = bptt.diagnose(model, square, data)
    assert diagnosis == diagnosis
    one, other, third = (bptt.Window(0, 0, 3, 3, {1: torch.tensor(w)}) for w in ([1.0, 0.0], [1.0, 0.0], [1.0, 2.0]))
    assert one == other != third
