"""Tasks: each target by a loop of its own, the known losses by simulation, and data that depends on the seed alone."""

import math

import pytest
import torch
from torch import nn

import bptt
from bptt.data import tasks

TASKS = {
    "copy": tasks.CopyMemory(delay=4, length=3, symbols=5),
    "adding": tasks.Adding(length=7),
    "delayed": tasks.DelayedCopy(delay=3, symbols=4),
    "bernoulli": tasks.BernoulliAdd(t1=2, t2=5),
}
LONG = {  # more steps than a task draws at once
    "copy": tasks.CopyMemory(delay=300),
    "adding": tasks.Adding(length=300),
    "delayed": tasks.DelayedCopy(delay=300),
    "bernoulli": tasks.BernoulliAdd(t1=300, t2=0),
}


def whole(task, batch, steps, length=None, seed=0):
    """The stream as one chunk, its starts and mask written out."""
    chunks = list(task.stream(batch, steps if length is None else length, steps, seed))
    none = [torch.zeros(len(chunk.inputs), dtype=torch.bool) for chunk in chunks]
    return bptt.Chunk(
        torch.cat([chunk.inputs for chunk in chunks]),
        torch.cat([chunk.targets for chunk in chunks]),
        torch.cat([n if c.is_start is None else c.is_start for n, c in zip(none, chunks, strict=True)]),
        torch.cat([~n if c.mask is None else c.mask for n, c in zip(none, chunks, strict=True)]),
    )


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [1, 5, 300, 1000])
def test_data_depends_on_the_seed_alone(name, length):
    """Not on the length of the chunks, nor on how much is asked for, nor on torch's own random numbers."""
    task, noise = TASKS[name], torch.get_rng_state()
    want = whole(task, 3, 600)
    assert torch.equal(torch.get_rng_state(), noise)
    torch.rand(5)
    got = whole(task, 3, 600, length)
    assert all(map(torch.equal, got, want))
    assert all(torch.equal(a[:70], b) for a, b in zip(want, whole(task, 3, 70, length), strict=True))
    assert not torch.equal(whole(task, 3, 600, seed=1).inputs, want.inputs)
    sizes = [len(chunk.inputs) for chunk in task.stream(3, length, 601)]
    assert sizes == [length] * (601 // length) + [601 % length] * (601 % length > 0)


@pytest.mark.parametrize("name", TASKS)
def test_sizes_and_types(name):
    for table in (TASKS, LONG):
        task = table[name]
        chunk = next(task.stream(batch=2, length=400))
        assert chunk.inputs.shape == (400, 2, task.inputs)
        assert chunk.inputs.dtype == torch.float32
        losses = task.loss(torch.zeros(400, 2, task.outputs), chunk.targets)
        assert losses.shape[:2] == (400, 2)


def test_copy_memory_by_a_loop():
    task = TASKS["copy"]
    data = whole(task, 2, 3 * 10 + 4)
    assert (task.sequence, task.lag, data.mask.all()) == (10, 7, True)
    for t in range(34):
        at = t % 10
        assert data.is_start[t] == (at == 0)
        for b in range(2):
            symbol, target = data.inputs[t, b].argmax().item(), data.targets[t, b].item()
            assert symbol < 5 if at < 3 else symbol == (5 if at < 6 else 6)
            assert target == (5 if at < 7 else data.inputs[t - 7, b].argmax())
    assert (data.inputs.sum(-1) == 1).all()


def test_copy_memory_has_the_published_size():
    task = tasks.CopyMemory(delay=100)
    assert (task.inputs, task.outputs, task.sequence) == (10, 9, 120)
    assert task.baseline == pytest.approx(10 * math.log(8) / (100 + 20))
    marked = whole(task, 1, 120).inputs[:, 0, 9]
    assert marked.nonzero().flatten().tolist() == list(range(109, 120))


def test_adding_by_a_loop():
    data = whole(TASKS["adding"], 4, 7 * 50)
    first, second = set(), set()
    for start in range(0, 350, 7):
        for b in range(4):
            marked = [t for t in range(7) if data.inputs[start + t, b, 1]]
            assert len(marked) == 2
            first.add(marked[0])
            second.add(marked[1])
            total = sum(data.inputs[start + t, b, 0] for t in marked)
            torch.testing.assert_close(data.targets[start + 6, b, 0], total)
        assert data.is_start[start : start + 7].tolist() == [True] + [False] * 6
        assert data.mask[start : start + 7].tolist() == [False] * 6 + [True]
    assert (first, second) == ({0, 1, 2}, {3, 4, 5, 6})


@pytest.mark.parametrize("name", ["delayed", "bernoulli"])
@pytest.mark.parametrize("table", [TASKS, LONG], ids=["short", "long"])
def test_tasks_without_end_by_a_loop(name, table):
    """Every target follows from inputs of earlier steps, over the edges of chunks and of what is drawn at once."""
    task = table[name]
    data = whole(task, 2, 900, 50)
    assert not data.is_start.any()
    assert data.mask.tolist() == [t >= task.lag for t in range(900)]
    symbols = data.inputs.argmax(-1)
    for t in range(task.lag, 900):
        if name == "delayed":
            assert torch.equal(data.targets[t], symbols[t - task.delay])
        else:
            one, other = data.inputs[t - task.t1, :, 0], data.inputs[t - task.t2, :, 0]
            certain = (one == 1) & (other == 0)
            assert (data.targets[t][certain] == 1).all()


def test_delayed_copy_has_words_and_pauses():
    symbols = whole(TASKS["delayed"], 50, 60).inputs.argmax(-1)
    phases = set()
    for row in symbols.T:
        phase = next(p for p in range(6) if all((row[t] == 1) == ((t + p) % 6 == 0) for t in range(60)))
        phases.add(phase)
        for t, symbol in enumerate(row.tolist()):
            at = (t + phase) % 6
            assert symbol == 1 if at == 0 else symbol >= 2 if at < 3 else symbol == 0
    assert len(phases) == 6
    assert symbols.max() == 5


def test_bernoulli_add_has_its_chances():
    task = TASKS["bernoulli"]
    data = whole(task, 400, 505)
    past = data.inputs[..., 0]
    one, other, y = past[3:500], past[:497], data.targets[5:502].float()
    for a in (0, 1):
        for b in (0, 1):
            assert y[(one == a) & (other == b)].mean().item() == pytest.approx(0.5 + 0.5 * a - 0.25 * b, abs=0.01)


class Clock(nn.Module):
    """Knows the step and no input: one output vector for each step of a sequence."""

    def __init__(self, targets, outputs, period):
        super().__init__()
        self.period = period
        by_step = [targets[at::period] for at in range(period)]
        if targets.is_floating_point():
            self.table = torch.stack([rows.mean((0, 1)) for rows in by_step])
        else:
            counts = torch.stack([torch.bincount(rows.flatten(), minlength=outputs) for rows in by_step])
            self.table = (counts / counts.sum(1, keepdim=True)).clamp(min=1e-30).log()

    def forward(self, inputs, state):
        at = (state + torch.arange(len(inputs))) % self.period
        return self.table[at][:, None].expand(-1, inputs.shape[1], -1), state + len(inputs)


@pytest.mark.parametrize("name", ["copy", "adding", "bernoulli"])
def test_baseline_by_simulation(name):
    """The best table of outputs by step, fitted to one half of the rows, on the other half."""
    task = TASKS[name]
    period = task.sequence or 1
    data = whole(task, 4000, 10 * period)
    seen = data.targets[0 if task.sequence else task.lag :, :2000]
    fitted = Clock(seen, task.outputs, period)
    held_out = data._replace(inputs=data.inputs[:, 2000:], targets=data.targets[:, 2000:], is_start=None)
    result = bptt.evaluate(fitted, task.loss, [held_out], torch.tensor(0))
    assert result.mean_loss.item() == pytest.approx(task.baseline, rel=0.02)


def test_baseline_of_the_delayed_copy_by_simulation():
    """Rows have clocks of their own, so each is moved to the same one first."""
    task = TASKS["delayed"]
    data = whole(task, 2000, 72)
    starts = (data.inputs[:6, :, 1] == 1).int().argmax(0)
    targets = torch.stack([data.targets[3 + s : 3 + s + 60, b] for b, s in enumerate(starts)], 1)
    clock = Clock(targets[:, :1000], task.outputs, 6)
    held_out = (torch.zeros(60, 1000, 1), targets[:, 1000:])
    result = bptt.evaluate(clock, task.loss, [held_out], torch.tensor(0))
    assert result.mean_loss.item() == pytest.approx(task.baseline, rel=0.02)


class Perfect(nn.Module):
    """Knows t1 and t2, and remembers the coins."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, inputs, state):
        coins = torch.cat([state, inputs[..., 0]])
        lag, n = self.task.lag, len(inputs)
        one, other = (coins[lag - t : lag - t + n] for t in (self.task.t1, self.task.t2))
        chance = (0.5 + 0.5 * one - 0.25 * other).clamp(1e-9, 1 - 1e-9)
        return torch.stack([1 - chance, chance], -1).log(), coins[n:]


def test_floor_of_bernoulli_add_by_simulation():
    task = TASKS["bernoulli"]
    stream = task.stream(batch=1000, length=64, steps=256)
    result = bptt.evaluate(Perfect(task), task.loss, stream, torch.zeros(task.lag, 1000))
    assert result.mean_loss.item() == pytest.approx(task.floor, rel=0.02)
    assert result.steps == 256


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    "strategy", [bptt.TruncatedBPTT(10, 15), bptt.ARTBP(bptt.ConstantLaw(8))], ids=["tbptt", "artbp"]
)
def test_any_recurrence_trains_on_a_task(name, strategy):
    task = TASKS[name]
    layer, readout = nn.GRU(task.inputs, 4), nn.Linear(4, task.outputs)
    loss = lambda outputs, targets: task.loss(readout(outputs), targets)  # noqa: E731
    stream = task.stream(batch=2, length=13, steps=50)
    updates = list(bptt.unroll(layer, loss, stream, strategy=strategy))
    assert updates[-1].t1 == 50
    assert all(p.grad is not None for p in (*layer.parameters(), *readout.parameters()))


def test_one_chunk_a_sequence_for_the_full_gradient():
    task = TASKS["adding"]
    chunks = list(task.stream(batch=2, length=task.sequence, steps=3 * task.sequence))
    assert len(chunks) == 3
    for chunk in chunks:
        assert chunk.is_start.tolist() == [True] + [False] * 6
        assert torch.isfinite(bptt.backward(nn.RNN(2, 1), task.loss, chunk).loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.CopyMemory(delay=0), r"CopyMemory\(delay=0\): .* at least 1"),
        (lambda: tasks.CopyMemory(length=1.5), r"length=1.5"),
        (lambda: tasks.CopyMemory(symbols=1), r"symbols=1\): .* at least 2"),
        (lambda: tasks.Adding(length=1), r"Adding\(length=1\): .* at least 2"),
        (lambda: tasks.DelayedCopy(delay=1), r"DelayedCopy\(delay=1\)"),
        (lambda: tasks.BernoulliAdd(t1=-1), r"t1=-1"),
        (lambda: tasks.BernoulliAdd(t1=4, t2=4), r"t1=4, t2=4\): the two coins must be different"),
        (lambda: tasks.Adding().stream(batch=0, length=1), r"batch=0"),
        (lambda: tasks.Adding().stream(batch=1, length=True), r"length=True"),
        (lambda: tasks.Adding().stream(batch=1, length=1, steps=0), r"steps=0"),
        (lambda: tasks.InfluenceBalancing(size=0), r"size=0"),
        (lambda: tasks.InfluenceBalancing(size=4, positive=2), r"-1 must outnumber the \+1.*positive=1 or less"),
        (lambda: tasks.InfluenceBalancing().stream(0), r"length=0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message) as info:
        make()
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("size", [(23, 10), (5, 1)])
def test_influence_balancing_is_its_definition(size):
    """The model against the recursion written out, its optimum, and the sign that a short look back gets wrong."""
    task = tasks.InfluenceBalancing(*size)
    model, (n, p) = task.model(), size
    (chunk,) = task.stream(300, 300)
    with torch.no_grad():
        model.theta.fill_(0.3)
    update = bptt.backward(model, task.loss, chunk, task.start(), reduction="sum")
    s, ds, loss, slope = [1.0] * n, [0.0] * n, 0.0, 0.0
    for _ in range(300):
        v = [1 if i < p else -1 for i in range(n)]
        s = [(s[i] + (s[i + 1] if i + 1 < n else 0)) / 2 + 0.3 * v[i] for i in range(n)]
        ds = [(ds[i] + (ds[i + 1] if i + 1 < n else 0)) / 2 + v[i] for i in range(n)]
        loss += (s[0] - 1) ** 2 / 2
        slope += (s[0] - 1) * ds[0]
    assert update.loss.item() == pytest.approx(loss)
    assert model.theta.grad.item() == pytest.approx(slope)

    with torch.no_grad():
        model.theta.fill_(task.optimum)
        settled = model(torch.zeros(2000), task.start())[1]
    assert settled[0].item() == pytest.approx(1)

    signs = []
    for tau in range(1, task.lag + 20):  # the sum over lags 0 .. tau - 1
        outputs, _ = model(torch.zeros(tau), settled)
        (effect,) = torch.autograd.grad(outputs[-1], model.theta)
        signs.append(effect.item() < 0)
    assert signs == [False] * task.lag + [True] * 19


def test_influence_balancing_streams_in_chunks():
    task = tasks.InfluenceBalancing()
    assert sum(len(chunk.inputs) for chunk in task.stream(7_000)) == task.steps
