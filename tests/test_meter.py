"""What the meter must not do: kill the process, forbid torch.func, be compiled, or stumble over sparse tensors."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.func import grad, jacrev

import bptt

F64 = torch.float64
mse = bptt.per_step(nn.MSELoss())

LONG = """
import threading, torch, bptt
from torch import nn

def flat(values):
    return torch.cat([p.grad.flatten() for p in values])

def scanned(x_t, state):
    h, c = cell(x_t, state)
    return h, (h, c)

def whole():
    x, y = torch.randn(T, 1, 1, dtype=torch.float64), torch.randn(T, 1, 2, dtype=torch.float64)
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    runs = (layer, list(layer.parameters()), zeros[None]), (bptt.scan(scanned), list(cell.parameters()), (zeros, zeros))
    for model, parameters, state in runs:
        (model(x, state)[0] - y).square().mean().backward()
        true = flat(parameters)
        for p in parameters:
            p.grad = None
        bptt.backward(model, bptt.per_step(nn.MSELoss()), (x, y), state)
        right.append(torch.allclose(flat(parameters), true, rtol=1e-10))

T, right = 3000, []
layer, cell = nn.GRU(1, 2, dtype=torch.float64), nn.LSTMCell(1, 2, dtype=torch.float64)
threading.stack_size(512 * 1024)
thread = threading.Thread(target=whole)
thread.start()
thread.join()
print(right)
"""


@pytest.mark.deep
def test_a_long_window_in_a_small_stack():
    """In a process of its own, since what it guards against kills it."""
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[True, True]"), done.stderr[-300:]


class Inner(nn.Module):
    """A step that descends an energy of its own by torch.func, draws noise, and counts its calls in a buffer."""

    def __init__(self, transform=grad):
        super().__init__()
        self.inner, self.drop, self.transform = nn.Linear(7, 4, dtype=F64), nn.Dropout(0.3), transform
        self.register_buffer("calls", torch.zeros((), dtype=F64))

    def forward(self, x, h):
        self.calls += 1
        x = self.drop(x)
        pulled = self.transform(lambda s: self.inner(torch.cat([x, s], -1)).square().sum())(h)
        h = torch.tanh(h - 0.1 * pulled)
        return h, h


def problem(transform=grad, T=9):
    torch.manual_seed(0)
    step = Inner(transform)
    return step, torch.randn(T, 2, 3, dtype=F64), torch.randn(T, 2, 4, dtype=F64), torch.zeros(2, 4, dtype=F64)


def plain(step, x, y, h):
    """The gradient by plain autograd, the noise drawn from seed 1; and the next number drawn."""
    torch.manual_seed(1)
    outputs = []
    for x_t in x:
        out, h = step(x_t, h)
        outputs.append(out)
    (torch.stack(outputs) - y).square().mean((1, 2)).sum().backward()
    found = torch.cat([p.grad.flatten() for p in step.parameters()])
    step.zero_grad()
    return found, torch.rand(())


@pytest.mark.parametrize("transform", [grad, jacrev])
def test_torch_func_in_a_step_runs_without_being_watched(transform):
    step, x, y, h = problem(transform)
    step.drop.p = 0.0
    true, _ = plain(step, x, y, h)
    for memory in (None, bptt.Checkpoints(2, 2)):
        update = bptt.backward(bptt.scan(step), mse, (x, y), h, memory=memory, reduction="sum")
        torch.testing.assert_close(
            torch.cat([p.grad.flatten() for p in step.parameters()]), true, rtol=1e-12, atol=1e-12
        )
        assert math.isnan(update.memory_bytes)
        step.zero_grad()


def test_the_attempt_that_torch_func_forbids_leaves_no_trace():
    """Noise and buffers are those of one run, whether the window is held whole or replayed."""
    step, x, y, h = problem()
    true, after = plain(step, x, y, h)
    step.calls.zero_()
    torch.manual_seed(1)
    bptt.backward(bptt.scan(step), mse, (x, y), h, reduction="sum")
    assert torch.rand(()) == after
    assert step.calls == 9
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in step.parameters()]), true, rtol=1e-12, atol=1e-12)
    step.calls.zero_()
    torch.manual_seed(1)
    bptt.backward(bptt.scan(step), mse, (x, y), h, reduction="sum", memory=bptt.Checkpoints(3, 3))
    assert torch.rand(()) == after
    assert step.calls == 9


def test_torch_func_in_a_loss_and_in_compare():
    step, x, y, h = problem()
    cell = nn.GRUCell(3, 4, dtype=F64)
    model = bptt.scan(lambda x_t, s: (cell(x_t, s),) * 2)

    def loss(outputs, targets):
        return grad(lambda o: (o - targets).square().sum())(outputs).square()

    bptt.backward(model, loss, (x, y), h, params=cell.parameters(), reduction="sum")
    found = [p.grad for p in cell.parameters()]
    cell.zero_grad()
    (4 * (model(x, h)[0] - y).square()).mean((1, 2)).sum().backward()
    torch.testing.assert_close(found, [p.grad for p in cell.parameters()])
    table = bptt.compare(bptt.scan(step.eval()), mse, (x, y), h, strategies=[bptt.TruncatedBPTT(9)])
    assert table.entries[0].bias.value < 1e-12
    assert "unknown" in str(table)


def test_what_needs_bytes_says_that_torch_func_hides_them():
    step, x, y, h = problem()
    model, words = bptt.scan(step), r"torch\.func.*Checkpoints"
    with pytest.raises(ValueError, match=words):
        bptt.backward(model, mse, (x, y), h, memory="1MiB")
    adaptive = bptt.AdaptiveTruncatedBPTT(tolerance=0.5, k_min=1, k_max=4)
    with pytest.raises(ValueError, match=words):
        list(bptt.unroll(model, mse, [(x, y)] * 9, h, strategy=adaptive, memory="1MiB"))
    with pytest.raises(ValueError, match=r"torch\.func.*compare"):
        bptt.plan(model, mse, (x, y), h)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("memory", [None, "10KiB", bptt.Checkpoints(2, 2)])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_matrices_are_counted_by_their_parts(layout, memory):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(7, 4, dtype=F64)
            self.register_buffer("mask", torch.eye(4, dtype=F64).to_sparse(layout=layout))

        def forward(self, x, h):
            h = torch.sparse.mm(self.mask, torch.tanh(self.inner(torch.cat([x, h], -1))).T).T
            return h, h

    torch.manual_seed(0)
    net, x, y = Net(), torch.randn(8, 2, 3, dtype=F64), torch.randn(8, 2, 4, dtype=F64)
    dense = bptt.scan(lambda x_t, h: (torch.tanh(net.inner(torch.cat([x_t, h], -1))),) * 2)
    bptt.backward(dense, mse, (x, y), torch.zeros(2, 4, dtype=F64), params=net.parameters())
    true = net.inner.weight.grad
    net.zero_grad()
    assert bptt.backward(bptt.scan(net), mse, (x, y), torch.zeros(2, 4, dtype=F64), memory=memory).memory_bytes > 0
    torch.testing.assert_close(net.inner.weight.grad, true)


def test_a_saved_weight_of_a_closure_does_not_count():
    """Whole or seen through a view, and beside a bias that nothing saves."""
    x, y, h = torch.randn(6, 2, 4, dtype=F64), torch.randn(6, 2, 4, dtype=F64), torch.zeros(2, 4, dtype=F64)
    cell = nn.Linear(4, 4, dtype=F64)
    held = [
        bptt.backward(model, mse, (x, y), h).memory_bytes
        for model in (
            bptt.scan(lambda x_t, s: (torch.tanh(x_t + cell(s)),) * 2),
            bptt.scan(lambda x_t, s: (torch.tanh(x_t + s @ cell.weight.T + cell.bias),) * 2),
            bptt.scan(_Module(cell)),
        )
    ]
    assert held[0] == held[1] == held[2]


class _Module(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x_t, s):
        return (torch.tanh(x_t + self.cell(s)),) * 2


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.layer, self.out = nn.Linear(3, 3), nn.GRU(3, 4), nn.Linear(4, 4)

    def forward(self, x, state):
        h, state = self.layer(self.into(x), state)
        return self.out(h), state


def frames(call):
    """How many frames the compiler took on in a call."""
    torch.compiler.reset()
    counters.clear()
    call()
    return counters["frames"]["total"]


@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 3)])
def test_a_compiled_model_does_not_have_the_hook_compiled(memory):
    torch.manual_seed(0)
    model, xs, ys, zeros = Mixed(), torch.randn(24, 2, 3), torch.randn(24, 2, 4), torch.zeros(1, 2, 4)
    compiled, found = torch.compile(model, backend="eager"), []

    def train(call):
        model.zero_grad()
        list(bptt.unroll(call, mse, [(xs, ys)], zeros, strategy=bptt.TruncatedBPTT(6), memory=memory))
        found.append([p.grad for p in model.parameters()])

    alone = frames(lambda: compiled(xs[:3], zeros)[0].sum().backward())
    assert alone > 0
    with torch.no_grad():
        advanced = frames(lambda: compiled(xs[:3], zeros)) if memory else 0  # replays run without a graph, too
    train(model)
    assert frames(lambda: train(compiled)) <= alone + advanced
    torch.testing.assert_close(found[1], found[0])
    torch.compiler.reset()


def test_what_changes_a_saved_tensor_is_refused_as_by_autograd():
    """In the window that is counted as in any other."""
    w, xs, zeros = nn.Parameter(torch.ones(2)), torch.ones(4, 2), torch.zeros(2)

    def step(x, h):
        h = (w * h).tanh() + x
        y = h.exp()
        y.add_(1)  # exp keeps what it gave
        return y, h

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        bptt.backward(bptt.scan(step), lambda y, t: (y - t).square(), (xs, xs), zeros)
