"""Recurrences: `scan`, `per_step`, `scale_gradient`, pytrees of inputs and outputs, native keywords."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import STEPS, StepByStep, make, some_resets, square
from support.runs import check, gradient, seed, unroll
from support.strategies_under_test import ALL, CUTTING, windows

F64 = torch.float64
T = 8


@pytest.mark.parametrize("name", STEPS)
def test_scan_is_a_loop(name):
    case = make(name, T)
    outputs, state = bptt.scan(case.step)(case.xs, case.random_state())
    want, last = case.model(case.xs, case.random_state())
    oracle.assert_close(outputs, want, 0.0)
    oracle.assert_close(state, last, 0.0)
    assert type(state) is type(last)
    assert [t.dtype for t in oracle.leaves(state)] == [t.dtype for t in oracle.leaves(last)]


def test_scan_of_a_module_is_a_module():
    step = make("dict", T).step
    step.register_buffer("table", torch.ones(3))
    model = bptt.scan(step)
    assert isinstance(model, nn.Module)
    assert {id(p) for p in model.parameters()} == {id(p) for p in step.parameters()}
    assert [b.shape for b in model.buffers()] == [(3,)]
    model.eval()
    assert not step.training
    model.to(torch.float32)
    assert step.slow.dtype == torch.float32


def test_scan_of_a_function():
    def step(x, s):
        return s + x, s + x

    outputs, state = bptt.scan(step)(torch.ones(4, 2), torch.zeros(2))
    assert outputs[:, 0].tolist() == [1, 2, 3, 4]
    assert state.tolist() == [4, 4]


def test_scan_of_a_cell_of_torch():
    """nn.GRUCell returns a state alone: a lambda makes it a step."""
    cell, layer = nn.GRUCell(3, 4, dtype=F64), nn.GRU(3, 4, dtype=F64)
    layer.load_state_dict({f"{k}_l0": v for k, v in cell.state_dict().items()})
    case = make("gru", T)

    def step(x, h):
        h = cell(x, h)
        return h, h

    for memory in (None, bptt.Checkpoints(2, 2)):
        bptt.backward(bptt.scan(step), square, (case.xs, case.ys), torch.zeros(2, 4, dtype=F64), memory=memory)
        got = oracle.gradients(cell.parameters())
        bptt.backward(layer, square, (case.xs, case.ys))
        oracle.assert_close(got, oracle.gradients(layer.parameters()))


@pytest.mark.parametrize("strategy", CUTTING.values(), ids=CUTTING)
def test_pytrees_of_inputs_outputs_and_targets(strategy):
    torch.manual_seed(0)
    mix = nn.Parameter(torch.randn(3, 4, dtype=F64))

    def step(x, h):
        h = torch.tanh(h * 0.8 + x["features"] @ mix + x["ids"][0].unsqueeze(-1))
        return (h, {"double": 2 * h}), h

    def loss(outputs, targets):
        h, more = outputs
        return (h - targets["next"]).square() + more["double"] * targets["sign"][0].unsqueeze(-1)

    def piece(n):
        inputs = {"features": torch.randn(n, 2, 3, dtype=F64), "ids": [torch.randint(3, (n, 2))]}
        return inputs, {"next": torch.randn(n, 2, 4, dtype=F64), "sign": (torch.randint(2, (n, 2)),)}

    xs, ys = piece(9)
    cut = [(oracle.steps(xs, a, b), oracle.steps(ys, a, b)) for a, b in ((0, 2), (2, 3), (3, 9))]
    state = torch.zeros(2, 4, dtype=F64)
    for memory in (None, bptt.Checkpoints(2, 2)):
        updates = list(
            bptt.unroll(
                bptt.scan(step), loss, cut, state, strategy=strategy, reduction="sum", memory=memory, generator=seed()
            )
        )
        (got,) = oracle.gradients([mix])
        problem = oracle.Problem(StepByStep(step), loss, xs, ys, state=state, batch_dim=0)
        (want,) = oracle.gradient_of(problem, windows(strategy, 9, updates), [mix])
        oracle.assert_close([got], [want])


def test_any_callable_is_a_recurrence():
    case = make("lstm", T)
    for model in (case.model, lambda xs, s: case.model(xs, s), case.model.forward):
        got = gradient(case, bptt.TruncatedBPTT(2, 5), model=model, state=case.zeros())[0]
        oracle.assert_close(got, gradient(case, bptt.TruncatedBPTT(2, 5))[0])


@pytest.mark.parametrize("criterion", ["cross entropy", "weighted", "smoothed", "mse", "bce", "nll"])
def test_per_step(criterion):
    """A torch criterion on (T, B, ...) outputs, whatever its own reduction would be, one loss a step and row."""
    torch.manual_seed(0)
    outputs, ids = torch.randn(5, 3, 7, dtype=F64), torch.randint(7, (5, 3))
    real, bits = torch.randn(5, 3, 7, dtype=F64), torch.randint(2, (5, 3, 7)).to(F64)
    made, targets = {
        "cross entropy": (nn.CrossEntropyLoss(), ids),
        "weighted": (nn.CrossEntropyLoss(weight=torch.rand(7, dtype=F64), reduction="none"), ids),
        "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"), ids),
        "mse": (nn.MSELoss(), real),
        "bce": (nn.BCEWithLogitsLoss(), bits),
        "nll": (nn.NLLLoss(), ids),
    }[criterion]
    losses = bptt.per_step(made)(outputs, targets)
    assert losses.shape[:2] == (5, 3)
    made.reduction = "none"
    for t in range(5):
        for b in range(3):
            oracle.assert_close([losses[t, b]], [made(outputs[t, b], targets[t, b])])


def test_per_step_with_ignored_targets_and_in_a_run():
    case, readout = make("gru", T), nn.Linear(4, 6, dtype=F64)
    ids = torch.randint(6, (T, 2))
    ids[2, 1] = -100
    case.ys = ids
    criterion = bptt.per_step(nn.CrossEntropyLoss())
    check(
        case,
        bptt.TruncatedBPTT(2, 5),
        loss=lambda o, y: criterion(readout(o), y),
        tensors=[*case.parameters(), *readout.parameters()],
        memory=bptt.Checkpoints(2, 2),
    )


def test_per_step_of_what_cannot_be_one():
    with pytest.raises((ValueError, TypeError)) as info:
        bptt.per_step(nn.CTCLoss())
    assert "\n" not in str(info.value)
    with pytest.raises((ValueError, TypeError)):
        bptt.per_step("cross entropy")


def test_scale_gradient_is_the_gate():
    x = torch.randn(3, 2, dtype=F64, requires_grad=True)
    y = bptt.scale_gradient(x, 2.5)
    assert torch.equal(y, x)
    y.square().sum().backward()
    oracle.assert_close([x.grad], [5.0 * x.detach()])
    x.grad = None
    rows = torch.tensor([1.0, 0.0, 3.0], dtype=F64)
    bptt.scale_gradient(x, rows, state_batch_dim=0).sum().backward()
    assert torch.equal(x.grad, rows[:, None].expand(3, 2))
    assert not bptt.scale_gradient(x, 0).requires_grad  # a cut


def test_scale_gradient_of_a_state():
    """A pytree: floating and complex leaves are gated, integers pass."""
    z = torch.randn(2, dtype=torch.complex128, requires_grad=True)
    h = torch.randn(2, dtype=F64, requires_grad=True)
    n = torch.arange(2)
    for w in (0.5, torch.tensor(0.5, dtype=F64)):
        gated = bptt.scale_gradient({"z": z, "rest": (h, n)}, w)
        assert torch.equal(gated["rest"][1], n)
        (gated["z"].real.sum() + 3 * gated["rest"][0].sum()).backward()
        assert torch.equal(z.grad, torch.full((2,), 0.5 + 0j, dtype=z.dtype))
        assert torch.equal(h.grad, torch.full((2,), 1.5, dtype=F64))
        z.grad = h.grad = None


def test_scale_gradient_under_torch_func():
    """Per-row gradients of x² through the gate: 2 w x, by vmap of grad, and by grad alone."""
    x = torch.randn(3, 2, dtype=F64)
    for w in (0.5, torch.tensor(0.5, dtype=F64)):

        def loss(x, w=w):
            return bptt.scale_gradient(x, w).square().sum()

        oracle.assert_close([torch.func.grad(loss)(x), torch.vmap(torch.func.grad(loss))(x)], [x, x])


def test_a_hand_written_artbp_loop_with_the_gate_alone():
    case, weights = make("gru", T), {2: 1.5, 5: 3.0}
    h, total = case.zeros(), 0.0
    for t in range(T):
        if t in weights:
            h = bptt.scale_gradient(h, weights[t])
        out, h = case.model(case.xs[t : t + 1], h)
        total = total + square(out, case.ys[t : t + 1]).mean()
    total.backward()
    got = oracle.gradients(case.parameters())
    window = oracle.Window(0, 0, T, T, weights)
    oracle.assert_close(got, oracle.gradient_of(case.problem(), [window], case.parameters()))


class Native(nn.GRU):
    """A layer that takes resets and weights itself: `cotangent_weight[t]` is w_{t+1} of (1), the boundary after t."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def forward(self, inputs, hx=None, *, is_start=None, cotangent_weight=None):
        self.calls.append((len(inputs), is_start is not None, cotangent_weight is not None))
        h = torch.zeros(1, inputs.shape[1], self.hidden_size, dtype=inputs.dtype) if hx is None else hx
        outputs = []
        for t in range(len(inputs)):
            if is_start is not None:
                rows = is_start[t].expand(inputs.shape[1])
                h = torch.where(rows[:, None], torch.zeros_like(h), h)
            y, h = super().forward(inputs[t : t + 1], h)
            if cotangent_weight is not None:
                h = oracle.gate(h, oracle.along_rows(cotangent_weight[t], h, 1))
            outputs.append(y)
        return torch.cat(outputs), h


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 3)], ids=["stored", "replayed"])
@pytest.mark.parametrize("initial", [False, True], ids=["zeros", "given"])
def test_native_support_equals_splitting(strategy, memory, initial):
    """`is_start` and `cotangent_weight` as keywords: the same gradient as for a recurrence without them."""
    case = make("gru", 12)
    native = Native(3, 4, dtype=F64)
    native.load_state_dict(case.model.state_dict())
    more = {"initial_state": case.random_state(4)} if initial else {}
    is_start = some_resets(12, 2)
    want, updates = gradient(case, strategy, is_start=is_start, cuts=(5,), **more)
    plain, case.model = case.model, native
    got, again = gradient(case, strategy, is_start=is_start, cuts=(5,), memory=memory, **more)
    oracle.assert_close(got, want)
    for a, b in zip(updates, again, strict=True):
        oracle.assert_close([b.loss, b.cotangent_norm, b.state], [a.loss, a.cotangent_norm, a.state])
    if initial:
        assert not any(start for _, start, _ in native.calls)  # native resets mean zeros
    elif memory is None:
        assert any(start for _, start, _ in native.calls)
    stepping = bptt.AdaptiveTruncatedBPTT, bptt.SnAp, bptt.UORO  # in probes, at random states, in forward mode
    if not initial and memory is None and not isinstance(strategy, stepping):
        once = 1 + isinstance(strategy, bptt.RTRL)  # which steps once to see what the state depends on
        assert (
            len(native.calls) <= 2 * len(updates) + once
        )  # not split at resets or weights, only where a state is kept
    assert plain is not native


def test_native_artbp_is_not_split():
    case = make("gru", 30)
    case.model = Native(3, 4, dtype=F64)
    updates = list(unroll(case, bptt.ARTBP(law=bptt.ConstantLaw(mean_length=10))))
    assert any(weighted for _, _, weighted in case.model.calls)
    assert len(case.model.calls) <= len(updates) + 1


def test_windows_without_random_cuts_keep_fused_calls():
    """TruncatedBPTT never splits a window in time; ARTBP only every `every` steps."""
    case, lengths = make("lstm", 40), []

    def model(inputs, state):
        lengths.append(len(inputs))
        return case.model(inputs, state)

    list(unroll(case, bptt.TruncatedBPTT(10), model=model, state=case.zeros(), cuts=(3, 20)))
    assert lengths == [10, 10, 10, 10]
    lengths.clear()
    list(unroll(case, bptt.ARTBP(law=bptt.ConstantLaw(20), every=10), model=model, state=case.zeros()))
    assert lengths == [10, 10, 10, 10]
