"""`plan` against what runs then really hold and run; which row is the best; and that a probe leaves nothing behind."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import bptt
from bptt.analysis.costs import Line
from support.cases import F64, make, some_resets, square
from support.refusals import refused

STEPS, SHORT = 100, 20
STRATEGIES = {
    "full": bptt.FullBPTT(),
    "tbptt-10": bptt.TruncatedBPTT(10),
    "tbptt-5-20": bptt.TruncatedBPTT(5, 20),
    "tbptt-2-30": bptt.TruncatedBPTT(2, 30),
    "artbp": bptt.ARTBP(bptt.ConstantLaw(12)),
    "artbp-8": bptt.ARTBP(bptt.PolynomialLaw(mean_length=20), every=8),
    "artbp-rows": bptt.ARTBP(bptt.ConstantLaw(12), every=4, per_row=True),
}


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    """So that what is compared is extrapolated."""
    monkeypatch.setattr("bptt.analysis.costs.LONGEST", 16)


def planned(case, loss=square, **more):
    """A plan of STEPS steps from the first SHORT."""
    more = {"steps": STEPS, "state_batch_dim": case.batch_dim} | more
    return bptt.plan(case.model, loss, (case.xs[:SHORT], case.ys[:SHORT]), case.zeros(), **more)


def ran(case, row, loss=square):
    """(most bytes, forward steps) of the run that a row speaks of."""
    updates = bptt.unroll(
        case.model,
        loss,
        [(case.xs, case.ys)],
        case.zeros(),
        strategy=row.strategy,
        memory=row.memory,
        state_batch_dim=case.batch_dim,
        generator=torch.Generator().manual_seed(0),
    )
    found = [(update.memory_bytes, update.forward_steps) for update in updates]
    case.model.zero_grad()
    return max(held for held, _ in found), sum(steps for _, steps in found)


def compared(case, rows, loss=square, tolerance=0.05):
    """Forward steps to the step. Bytes to the byte where equal windows are stored whole, else within `tolerance`."""
    assert rows
    for row in rows:
        held, steps = ran(case, row, loss)
        planned_ahead = isinstance(row.strategy, (bptt.FullBPTT, bptt.TruncatedBPTT))
        equal = row.memory is None and planned_ahead and getattr(row.strategy, "k2", None) is None
        assert row.memory_bytes == (held if equal else pytest.approx(held, rel=tolerance)), row
        assert row.forward_steps == steps, row


@pytest.mark.parametrize("share", [None, 0.2])
@pytest.mark.parametrize(
    "name",
    ["rnn", pytest.param("lstm2", marks=pytest.mark.deep), "dict", pytest.param("complex", marks=pytest.mark.deep)],
)
@pytest.mark.thin
def test_bytes_and_forwards_are_those_of_a_run(name, share):
    case = make(name, STEPS, B=4, hidden=13)
    budget = None if share is None else int(share * ran(case, planned(case, strategies=[bptt.FullBPTT()]).best)[0])
    found = planned(case, memory=budget, strategies=list(STRATEGIES.values()))
    compared(case, found.rows)
    by_strategy = {str(row.strategy) for row in found.rows}
    assert len(by_strategy) == len(STRATEGIES)
    for row in found.rows:
        assert row.fits == (budget is None or row.memory_bytes <= budget)
        assert row.fits or row.memory is None
        if row.memory is not None:
            assert ran(case, row)[0] <= budget
    if budget:
        full = [row for row in found.rows if row.strategy == bptt.FullBPTT()]
        assert [row.fits for row in full] == [False, True]
        assert full[1].forward_steps > STEPS


def test_windows_whose_short_calls_are_served_in_another_way():
    """A fused layer leaves calls of fewer than four steps to torch.nn, whose graph saves more: here of the second."""
    case = make("lstm", STEPS, hidden=8, dtype=torch.float32)
    case = replace(case, model=bptt.nn.convert(case.model))
    compared(case, planned(case, strategies=[bptt.TruncatedBPTT(5, 12)]).rows)


def test_a_loss_that_saves_more_than_the_recurrence():
    """A vocabulary: a window with few losses holds little."""
    case, readout = make("gru", STEPS, hidden=4), nn.Linear(4, 100, dtype=F64)

    def loss(outputs, targets):
        return torch.log_softmax(readout(outputs), -1)[..., 0].square()

    strategies = [bptt.FullBPTT(), bptt.TruncatedBPTT(2, 30), bptt.TruncatedBPTT(30)]
    found = planned(case, loss, memory="100KB", strategies=strategies)
    compared(case, found.rows, loss, tolerance=0.15)  # k1 < k2: the few losses of a window are a fifth of its bytes
    assert found.rows[-1].memory_bytes > 2 * found.rows[-2].memory_bytes


def test_layers_that_take_weights(monkeypatch):
    """bptt.nn's layers are called once a window, whatever its weights; and do short calls in another way."""
    monkeypatch.setattr("bptt.analysis.costs.LONGEST", STEPS)
    case = make("lstm", STEPS, B=4, hidden=13, dtype=torch.float32)
    case.model = bptt.nn.LSTM(3, 13)
    compared(case, planned(case, strategies=list(STRATEGIES.values())).rows)


def test_reach_and_kind():
    """By a loop over windows; what covers everything is exact, what has no factors is biased."""
    case = make("rnn", STEPS)
    kinds = {
        bptt.FullBPTT(): "exact",
        bptt.TruncatedBPTT(10, STEPS + 9): "exact",
        bptt.TruncatedBPTT(10, 40): "biased",
        bptt.TruncatedBPTT(7): "biased",
        bptt.ARTBP(bptt.ConstantLaw(1e6)): "unbiased",
        bptt.ARTBP(bptt.ConstantLaw(10), compensate=False): "biased",
    }
    rows = planned(case, strategies=list(kinds)).rows
    assert [row.strategy for row in rows] == list(kinds)
    for row in rows:
        assert row.gradient == kinds[row.strategy]
        generator = torch.Generator().manual_seed(0)
        run = bptt.unroll(case.model, square, [(case.xs, case.ys)], strategy=row.strategy, generator=generator)
        reach = [t - update.start + 1 for update in run for t in range(update.t0, update.t1)]
        assert row.reach == pytest.approx(sum(reach) / STEPS)


def test_best_is_exact_else_unbiased_else_the_least_biased():
    case = make("gru", STEPS, B=4, hidden=13)
    randomised, truncated = bptt.ARTBP(bptt.ConstantLaw(12)), [bptt.TruncatedBPTT(k) for k in (4, 12, 1)]
    everything = [*truncated, randomised, bptt.FullBPTT()]
    assert planned(case, strategies=everything).best.strategy == bptt.FullBPTT()
    assert planned(case, strategies=everything, memory="30KB").best.strategy == bptt.FullBPTT()
    assert planned(case, strategies=everything[:4]).best.strategy == randomised
    found = planned(case, strategies=truncated)
    assert found.best.strategy == bptt.TruncatedBPTT(12)
    assert "tbptt:12, all kept, is the least biased gradient: " in found.verdict()
    # what one step stored whole takes is less than any schedule needs
    found = planned(case, strategies=everything, memory=found.rows[-1].memory_bytes)
    assert [row.strategy for row in found.rows if row.fits] == [bptt.TruncatedBPTT(1)]
    assert found.best.gradient == "biased"


def test_strategies_to_consider_by_default():
    rows = planned(make("rnn", STEPS), steps=300).rows
    assert {row.gradient for row in rows} == {"exact", "unbiased", "biased"}
    lengths = [row.strategy.k1 for row in rows if isinstance(row.strategy, bptt.TruncatedBPTT)]
    assert lengths == [8, 32, 128, 16, 64, 256, 1]
    assert all(row.seconds > 0 for row in rows)
    assert len(planned(make("rnn", STEPS), steps=10).rows) == 2  # full, and one step


def test_a_plan_as_text():
    found = planned(make("rnn", STEPS), memory="10KB", strategies=[bptt.FullBPTT(), bptt.TruncatedBPTT(4)])
    *table, reason = str(found).splitlines()
    assert reason == found.verdict()
    assert len(table) == 1 + len(found.rows)
    assert len({len(line) for line in table}) == 1
    assert table[0].split() == ["strategy", "kept", "gradient", "reach", "time", "memory"]
    assert table[1].split()[:3] == ["full", "all", "exact"]
    assert table[1].endswith("too much")
    schedule = found.rows[1].memory
    assert f" {schedule.slots} x {schedule.segment} " in table[2]
    assert "fastest exact gradient that fits 9.766 KiB" in reason


@pytest.mark.parametrize("strategies", [None, [bptt.FullBPTT()], [bptt.TruncatedBPTT(30, 40)]], ids=str)
@pytest.mark.thin
def test_a_budget_that_nothing_fits_names_the_least_that_would(strategies):
    case = make("lstm", STEPS)
    with pytest.raises(bptt.BudgetError, match=r"^memory='10B': no strategy fits") as error:
        planned(case, memory="10B", strategies=strategies)
    least = error.value.least
    found = planned(case, memory=least, strategies=strategies)
    compared(case, [found.best], tolerance=0.15)  # one state of 144 bytes, of 1,152
    assert ran(case, found.best)[0] <= least
    with pytest.raises(bptt.BudgetError) as error:
        planned(case, memory=least - 1, strategies=strategies)
    assert (error.value.least, error.value.strategy) == (least, found.best.strategy)
    assert f"memory={least}, for {found.best.strategy}." in str(error.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"memory": bptt.Checkpoints(1, 1)}, ["Checkpoints(slots=1, segment=1)", "512MiB"]),
        ({"memory": "lots"}, ["memory='lots'"]),
        ({"steps": 0}, ["steps", "0"]),
        ({"strategies": []}, ["strategies is empty"]),
        ({"strategies": [bptt.FullBPTT]}, ["FullBPTT(...)"]),
    ],
)
def test_arguments_that_make_no_sense(more, words):
    refused(lambda: planned(make("rnn", STEPS), **more), *words)


def test_a_chunk_without_a_step_and_one_of_one():
    case = make("rnn", STEPS)
    refused(lambda: bptt.plan(case.model, square, (case.xs[:0], case.ys[:0])), "T = 0")
    found = bptt.plan(case.model, square, (case.xs[:1], case.ys[:1]), steps=STEPS, strategies=STRATEGIES.values())
    compared(case, found.rows)


class Noisy(nn.Module):
    """Draws random numbers and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(7, 4, dtype=F64)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, state):
        self.calls += 1
        h = torch.tanh(self.inner(torch.cat([x, self.drop(state)], -1)))
        return h, h


def test_nothing_is_left_behind():
    """Parameters, gradients (of closures and learned states too), buffers, noise and modes."""
    case, step = make("gru", STEPS), Noisy()
    readout, start = nn.Linear(4, 4, dtype=F64), nn.Parameter(torch.zeros(2, 4, dtype=F64))
    xs = case.xs[:SHORT].clone().requires_grad_()
    step.inner.bias.grad = torch.full_like(step.inner.bias, 3.0)
    step.drop.eval()
    leaves = [*step.parameters(), *readout.parameters(), start]
    before = [leaf.detach().clone() for leaf in leaves]
    noise, buffer = torch.get_rng_state(), step.calls
    found = bptt.plan(
        bptt.scan(step),
        lambda outputs, targets: square(readout(outputs), targets),
        bptt.Chunk(xs, case.ys[:SHORT], some_resets(SHORT, 2), some_resets(SHORT, 2)),
        initial_state=lambda: start + torch.rand(()),
        state_batch_dim=0,
        steps=STEPS,
        memory="10KB",
    )
    assert found.best.fits
    assert torch.equal(torch.get_rng_state(), noise)
    assert step.calls is buffer
    assert step.calls == 0
    assert (step.training, step.drop.training) == (True, False)
    assert all(map(torch.equal, leaves, before))
    assert [leaf.grad is None for leaf in leaves] == [True, False, True, True, True]
    assert (step.inner.bias.grad == 3).all()
    assert xs.grad is None


def test_batch_first(monkeypatch):
    monkeypatch.setattr(
        "bptt.analysis.costs.LONGEST", SHORT
    )  # oneDNN's LSTM takes its memory in blocks, not step by step
    layer = nn.LSTM(3, 5, batch_first=True)
    chunk = (torch.randn(2, SHORT, 3), torch.randn(2, SHORT, 5))
    loss = bptt.per_step(nn.MSELoss())
    (row,) = bptt.plan(layer, loss, chunk, time_dim=1, strategies=[bptt.FullBPTT()]).rows
    assert row.memory_bytes == pytest.approx(bptt.backward(layer, loss, chunk, time_dim=1).memory_bytes, rel=0.05)
    assert row.forward_steps == SHORT


def test_without_targets():
    decay = bptt.scan(lambda x, s: (s * x, 0.5 * s + x))
    (row,) = bptt.plan(decay, lambda y, _: y**2, (torch.ones(7, requires_grad=True), None), torch.ones(())).rows[:1]
    assert row.gradient == "exact"


def test_lines_join_what_was_measured_and_do_not_fall_beyond():
    line = Line({1: 10.0, 4: 4.0, 8: 12.0})
    assert [line(n) for n in (1, 2, 4, 6, 8, 10)] == [10, 8, 4, 8, 12, 16]
    assert [Line({2: 6.0})(n) for n in (1, 2, 4)] == [3, 6, 12]
    assert Line({1: 9.0, 4: 3.0})(100) == 3
