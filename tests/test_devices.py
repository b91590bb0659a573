"""Nothing is pinned to the CPU, to one precision, or to eager mode: meta tensors, autocast, torch.compile."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bptt
from support import oracle
from support.cases import make, square
from support.runs import seed
from support.strategies_under_test import ALL, STRATEGIES

T = 9
BUDGETS = {"stored": None, "replayed": bptt.Checkpoints(2, 2), "bytes": "1MiB"}


@pytest.mark.parametrize("name", ["full", "tbptt-3-3", "tbptt-2-5", "artbp-constant"])
@pytest.mark.parametrize(("cell", "memory"), [(nn.GRU, None), (nn.LSTM, bptt.Checkpoints(2, 2)), (nn.RNN, "1MiB")])
def test_meta_device(name, cell, memory):
    """Shapes alone: model, data and states on a device that is not the CPU and holds no numbers."""
    strategy, model = STRATEGIES[name], cell(3, 4, device="meta")
    xs, ys = torch.empty(T, 2, 3, device="meta"), torch.empty(T, 2, 4, device="meta")
    mask = torch.ones(T, 2, dtype=torch.bool, device="meta")
    is_start = torch.zeros(T, 2, dtype=torch.bool)
    is_start[4, 1] = True  # where rows reset must be known: it stays on the CPU
    stream = [(xs[:5], ys[:5], is_start[:5], mask[:5]), (xs[5:], ys[5:], is_start[5:], mask[5:])]
    more = {"strategy": strategy, "memory": memory, "reduction": "sum"}
    for update in bptt.unroll(model, square, stream, generator=seed(), **more):
        assert update.loss.device.type == "meta"
        assert update.mean_loss.device.type == "meta"
        assert update.cotangent_norm.device.type == "meta"
        assert all(leaf.device.type == "meta" for leaf in oracle.leaves(update.state))
    assert all(p.grad.device.type == "meta" for p in model.parameters())
    bptt.backward(model, square, (xs, ys), generator=seed(), **more)
    assert bptt.evaluate(model, square, stream).loss.device.type == "meta"


@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_meta_device_with_a_users_step(memory):
    case = make("dict", T, dtype=torch.float32)
    step = case.step.to("meta")
    xs, ys = case.xs.to("meta"), case.ys.to("meta")
    state = oracle.tree_map(lambda t: t.to("meta"), case.zeros())
    for strategy in (bptt.TruncatedBPTT(2, 5), bptt.FullBPTT()):
        run = bptt.unroll(
            bptt.scan(step),
            square,
            [(xs, ys)],
            state,
            strategy=strategy,
            memory=memory,
            clip_cotangent=1.0,
            state_batch_dim=0,
        )
        devices = [update.loss.device.type for update in run]
        assert devices == ["meta"] * (1 if strategy == bptt.FullBPTT() else -(-T // 2))


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
def test_a_default_device_does_not_matter(strategy):
    """With `meta` as torch's default device a run on the CPU makes no tensor there."""
    case = make("gru", T)
    stream = [(case.xs[:5], case.ys[:5]), (case.xs[5:], case.ys[5:])]
    ends = []
    for default in (None, "meta"):
        torch.set_default_device(default)
        try:
            run = bptt.unroll(
                case.model,
                square,
                stream,
                strategy=strategy,
                reduction="sum",
                generator=seed(),
                memory=bptt.Checkpoints(2, 2),
            )
            ends.append([(u.t1, float(u.loss), float(u.cotangent_norm)) for u in run])
        finally:
            torch.set_default_device(None)
        ends.append(oracle.gradients(case.parameters()))
    assert ends[0] == ends[2]
    oracle.assert_close(ends[3], ends[1], 0.0)


class Cell(nn.Module):
    """A step whose matrix products autocast lowers; the state keeps the precision that `keep` asks for."""

    def __init__(self, keep: bool):
        super().__init__()
        self.inner, self.keep = nn.Linear(7, 4), keep

    def forward(self, x, h):
        new = torch.tanh(self.inner(torch.cat([x, h], -1)))
        return new, new.float() if self.keep else new


class Inside(nn.Module):
    """The same under an autocast context of its own."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, x, h):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.step(x, h)


def train(inside: bool, memory, strategy, keep: bool):
    case = make("gru", 24, dtype=torch.float32)
    torch.manual_seed(2)
    step = Cell(keep)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.5)
    model = bptt.scan(Inside(step) if inside else step)
    losses, epochs = [], []
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
        for _ in range(3):
            stream = [(case.xs[:9], case.ys[:9].tanh()), (case.xs[9:], case.ys[9:].tanh())]

            def loss(outputs, targets):
                return (outputs.float() - targets).square()

            for update in bptt.unroll(
                model, loss, stream, torch.zeros(2, 4), strategy=strategy, memory=memory, generator=seed()
            ):
                losses.append(float(update.loss))
                optimizer.step()
                optimizer.zero_grad()
            epochs.append(sum(losses) - sum(epochs))
    return losses, epochs, [p.detach().clone() for p in step.parameters()]


@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize(
    "strategy",
    [bptt.TruncatedBPTT(4), bptt.TruncatedBPTT(2, 6), bptt.ARTBP(law=bptt.ConstantLaw(mean_length=4), every=2)],
    ids=["4", "2-6", "artbp"],
)
@pytest.mark.parametrize("keep", [True, False], ids=["float state", "lowered state"])
def test_autocast_around_the_loop_equals_autocast_inside_the_model(memory, strategy, keep):
    around, inside = train(False, memory, strategy, keep), train(True, memory, strategy, keep)
    assert around[0] == pytest.approx(inside[0], rel=1e-5)
    oracle.assert_close(around[2], inside[2], 1e-5)
    torch.manual_seed(2)
    begin = list(Cell(keep).parameters())
    assert all(not torch.equal(p, b) for p, b in zip(around[2], begin, strict=True))
    assert around[1][2] < 0.95 * around[1][0]  # the loss moves: the weights that are used are the stepped ones


def test_evaluation_between_updates_under_autocast():
    """Casts made without a graph must not be found by the next window."""
    case = make("gru", 12, dtype=torch.float32)
    step = Cell(True)
    model, state = bptt.scan(step), torch.zeros(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in bptt.unroll(model, square, [(case.xs, case.ys)], state, strategy=bptt.TruncatedBPTT(4)):
            bptt.evaluate(model, square, [(case.xs, case.ys)], state)
        first = [p.grad.clone() for p in step.parameters()]
        oracle.gradients(step.parameters())
        list(bptt.unroll(model, square, [(case.xs, case.ys)], state, strategy=bptt.TruncatedBPTT(4)))
    oracle.assert_close(oracle.gradients(step.parameters()), first, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_dtypes(dtype, memory):
    """The gradient has the parameters' dtype and agrees with plain autograd in that precision."""
    case = make("dict", T, dtype=dtype)
    bptt.backward(bptt.scan(case.step), square, (case.xs, case.ys), case.zeros(), memory=memory, reduction="sum")
    got = oracle.gradients(case.parameters())
    outputs, _ = case.model(case.xs, case.zeros())
    square(outputs, case.ys).mean((1, 2)).sum().backward()
    assert [g.dtype for g in got] == [dtype] * len(got)
    oracle.assert_close(got, oracle.gradients(case.parameters()), {torch.float32: 1e-5}.get(dtype, 0.1))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(7, 4, dtype=torch.float64)

    def forward(self, xs, h):
        outputs = []
        for x in xs.unbind(0):
            h = torch.tanh(self.inner(torch.cat([x, h], -1)))
            outputs.append(h)
        return torch.stack(outputs), h


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model(backend):
    """torch.compile through `unroll`, with steps between updates, stored and replayed."""
    results = []
    for compiled in (False, True):
        for memory in (None, bptt.Checkpoints(2, 2)):
            torch.manual_seed(1)
            case, model = make("gru", 8), Plain()
            run = torch.compile(model, backend=backend) if compiled else model
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            stream, state = [(case.xs[:4], case.ys[:4]), (case.xs[4:], case.ys[4:])], torch.zeros(2, 4).double()
            for strategy in (bptt.TruncatedBPTT(4), bptt.TruncatedBPTT(2, 4)):
                ends = []
                for update in bptt.unroll(run, square, stream, state, strategy=strategy, memory=memory):
                    ends.append(update.t1)
                    optimizer.step()
                    optimizer.zero_grad()
                assert ends == list(range(strategy.k1, 9, strategy.k1))
            results.append([p.detach().clone() for p in model.parameters()])
            torch.compiler.reset()
    for got in results[1:]:
        oracle.assert_close(got, results[0], 1e-11)


def test_compiled_step_under_scan():
    case = make("gru", 6)
    torch.manual_seed(1)
    cell = nn.GRUCell(3, 4, dtype=torch.float64)

    def step(x, h):
        h = cell(x, h)
        return h, h

    state, grads = torch.zeros(2, 4, dtype=torch.float64), []
    for function in (step, torch.compile(step, backend="eager")):
        bptt.backward(bptt.scan(function), square, (case.xs, case.ys), state, memory=bptt.Checkpoints(2, 1))
        grads.append(oracle.gradients(cell.parameters()))
    torch.compiler.reset()
    oracle.assert_close(grads[1], grads[0])


class Waits(TorchDispatchMode):
    """Counts the operations that would make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = function.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "equal", "unique_dim"}
        self.count += waits and args[0].dtype != torch.uint8  # states of the host's generator lie on the host
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("strategy", [bptt.TruncatedBPTT(3), bptt.TruncatedBPTT(2, 5), bptt.FullBPTT()], ids=str)
def test_at_most_two_synchronisations_per_update(strategy, memory):
    """One for the losses, before anything reaches `.grad`, and one for the gradient.

    Where steps run twice the first window asks whether they may, and the first one with two segments asks the loss.
    """
    case, mask = make("lstm", T), torch.ones(T, 2, dtype=torch.bool)
    stream = [(case.xs[:5], case.ys[:5], None, mask[:5]), (case.xs[5:], case.ys[5:], None, mask[5:])]
    asks = 2 if memory is not None or strategy == bptt.TruncatedBPTT(2, 5) else 0
    with Waits() as waits:
        counts = []
        for _ in bptt.unroll(case.model, square, stream, strategy=strategy, memory=memory):
            counts.append(waits.count)
            waits.count = 0
    assert len(counts) == (1 if strategy == bptt.FullBPTT() else -(-T // strategy.k1))
    assert min(counts) >= 1
    assert all(count <= 2 for count in counts[asks:])
