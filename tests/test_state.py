"""States are pytrees of tensors: any nesting, integer and boolean leaves, registered types; other things are errors."""

import collections
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import STEPS, make, some_resets, square
from support.runs import check, engine, unroll

F64 = torch.float64
T = 9
BUDGETS = {"stored": None, "1 slot": bptt.Checkpoints(1, 1), "2 slots of 2": bptt.Checkpoints(2, 2), "bytes": "8KiB"}

Pair = collections.namedtuple("Pair", ["a", "b"])


def leaky(x, h, n):
    h = torch.tanh(0.7 * h + x) * (1 + 0.1 * n.unsqueeze(-1))
    return h, h, n + 1


WRAP = {
    "tensor and int in a tuple": (lambda h, n: (h, n), lambda s: s),
    "list": (lambda h, n: [h, n], tuple),
    "dict": (lambda h, n: {"n": n, "h": h}, lambda s: (s["h"], s["n"])),
    "ordered dict": (lambda h, n: collections.OrderedDict(n=n, h=h), lambda s: (s["h"], s["n"])),
    "named tuple": (lambda h, n: Pair(a=n, b=h), lambda s: (s.b, s.a)),
    "nested": (lambda h, n: {"x": [(h,), {}], "y": ((), Pair(n, [n]))}, lambda s: (s["x"][0][0], s["y"][1].a)),
}


@pytest.mark.parametrize(("wrap", "unwrap"), WRAP.values(), ids=WRAP)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_structures(wrap, unwrap, memory):
    lift = nn.Parameter(torch.randn(4, dtype=F64))
    x, y = torch.randn(T, 2, 4, dtype=F64), torch.randn(T, 2, 4, dtype=F64)

    def step(v, s):
        out, h, n = leaky(v * lift, *unwrap(s))
        return out, wrap(h, n)

    def begin():
        return wrap(torch.zeros(2, 4, dtype=F64), torch.zeros(2, dtype=torch.int64))

    for strategy, window in ((bptt.FullBPTT(), None), (bptt.TruncatedBPTT(2, 5), (2, 5))):
        for update in bptt.unroll(
            bptt.scan(step), square, [(x, y)], begin(), strategy=strategy, memory=memory, reduction="sum"
        ):
            last = update
        (got,) = oracle.gradients([lift])
        assert type(last.state) is type(begin())
        h, n = unwrap(last.state)
        assert n.tolist() == [T, T]
        lift.grad = None
        _plain(lift, x, y, window)
        oracle.assert_close([got], oracle.gradients([lift]))
        del h


def _plain(lift, x, y, window):
    blocks = [(0, 0, T)] if window is None else [tuple(w[:3]) for w in oracle.truncated(*window, T)]
    for start, first, stop in blocks:
        h, n = torch.zeros(2, 4, dtype=F64), torch.zeros(2, dtype=torch.int64)
        total = 0.0
        for t in range(stop):
            h = h.detach() if t == start else h
            out, h, n = leaky(x[t] * lift, h, n)
            if t >= first:
                total = total + square(out, y[t]).mean()
        total.backward()


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_integer_boolean_and_complex_leaves(name, memory):
    case = make(name, T)
    for strategy in (bptt.FullBPTT(), bptt.TruncatedBPTT(2, 5), bptt.ARTBP(law=bptt.ConstantLaw(4))):
        check(case, strategy, memory=memory, is_start=some_resets(T, 2), state=case.random_state(), cuts=(3,))


def test_states_of_mixed_precision():
    """A float64 part beside a float32 part keeps both."""
    w = nn.Parameter(torch.tensor(0.9, dtype=F64))

    def step(x, s):
        slow, fast = s
        slow = w * slow + x
        fast = (0.5 * fast + slow.to(torch.float32)).tanh()
        return slow + fast.to(F64), (slow, fast)

    x = torch.randn(T, 2, dtype=F64)
    grads = []
    for memory in BUDGETS.values():
        begin = (torch.zeros(2, dtype=F64), torch.zeros(2))
        update = bptt.backward(bptt.scan(step), square, (x, x), begin, memory=memory, reduction="sum")
        assert [leaf.dtype for leaf in update.state] == [F64, torch.float32]
        grads += oracle.gradients([w])
    state, total = (torch.zeros(2, dtype=F64), torch.zeros(2)), 0.0
    for t in range(T):
        out, state = step(x[t], state)
        total = total + square(out, x[t]).mean()
    total.backward()
    oracle.assert_close(grads, oracle.gradients([w]) * len(BUDGETS), 1e-6)


def test_a_stateless_pass_through_and_an_empty_state():
    """A recurrence without any state is a feed-forward network: every truncation is exact."""
    lin = nn.Linear(4, 4, dtype=F64)
    x, y = torch.randn(T, 2, 4, dtype=F64), torch.randn(T, 2, 4, dtype=F64)
    square(lin(x), y).mean((1, 2)).sum().backward()
    want = oracle.gradients(lin.parameters())
    for memory in BUDGETS.values():
        for strategy in (bptt.FullBPTT(), bptt.TruncatedBPTT(2, 3)):
            for _ in bptt.unroll(
                lambda v, s: (lin(v), s), square, [(x, y)], (), strategy=strategy, memory=memory, reduction="sum"
            ):
                pass
            oracle.assert_close(oracle.gradients(lin.parameters()), want)


def test_a_state_that_the_step_does_not_touch():
    """A leaf handed through unchanged, and one that is the same tensor twice."""
    lin = nn.Linear(4, 4, dtype=F64)
    x, y = torch.randn(T, 2, 4, dtype=F64), torch.randn(T, 2, 4, dtype=F64)
    context = torch.randn(2, 4, dtype=F64, requires_grad=True)

    def step(v, s):
        h, c, _ = s
        h = torch.tanh(lin(h + v) + c)
        return h, (h, c, h)

    def begin():
        return (torch.zeros(2, 4, dtype=F64), context, torch.zeros(2, 4, dtype=F64))

    s, total = begin(), 0.0
    for t in range(T):
        out, s = step(x[t], s)
        total = total + square(out, y[t]).mean()
    total.backward()
    want = oracle.gradients([context, *lin.parameters()])
    for memory in BUDGETS.values():
        bptt.backward(bptt.scan(step), square, (x, y), begin(), memory=memory, reduction="sum")
        oracle.assert_close(oracle.gradients([context, *lin.parameters()]), want)


def test_states_updated_in_place_by_the_model():
    """A step that writes into a state tensor of its own making."""
    w = nn.Parameter(torch.tensor(0.9, dtype=F64))

    def step(x, buffer):
        buffer = torch.roll(buffer, 1, 0)
        buffer[0] = w * x + 0.1 * buffer[1]
        return buffer.sum(0), buffer

    x = torch.randn(T, 2, dtype=F64)
    grads = []
    for memory in BUDGETS.values():
        bptt.backward(bptt.scan(step), square, (x, x), torch.zeros(3, 2, dtype=F64), memory=memory, reduction="sum")
        grads += oracle.gradients([w])
    buffer, total = torch.zeros(3, 2, dtype=F64), 0.0
    for t in range(T):
        out, buffer = step(x[t], buffer)
        total = total + square(out, x[t]).mean()
    total.backward()
    oracle.assert_close(grads, oracle.gradients([w]) * len(BUDGETS))


@pytest.mark.parametrize("lifted", [True, False], ids=["scan", "whole"])
def test_models_that_write_to_the_containers_that_they_are_given(lifted):
    """A list of states whose entries the model replaces, and a dict of inputs to which it adds its outputs."""
    torch.manual_seed(0)
    cells = nn.ModuleList([nn.GRUCell(2, 2, dtype=F64), nn.GRUCell(2, 2, dtype=F64)])

    def step(inputs, state, write=True):
        h, state = inputs["x"], state if write else list(state)
        for i, cell in enumerate(cells):
            state[i] = h = cell(h, state[i])
        if write:
            inputs["y"] = h
        return h, state

    def whole(inputs, state):
        inputs["y"] = torch.stack([step({"x": x}, state)[0] for x in inputs["x"]])
        return inputs["y"], state

    x, y, zero = torch.randn(T, 2, 2, dtype=F64), torch.randn(T, 2, 2, dtype=F64), torch.zeros(2, 2, dtype=F64)
    for strategy in (bptt.FullBPTT(), bptt.TruncatedBPTT(2), bptt.TruncatedBPTT(2, 5)):
        pure = bptt.scan(lambda inputs, state: step(inputs, state, write=False))
        want = bptt.backward(pure, square, ({"x": x}, y), [zero, zero], strategy=strategy)
        gradients = oracle.gradients(cells.parameters())
        for memory in BUDGETS.values():
            inputs, state = {"x": x}, [zero, zero]
            model = bptt.scan(step) if lifted else whole
            update = bptt.backward(model, square, (inputs, y), state, strategy=strategy, memory=memory)
            oracle.assert_close(oracle.gradients(cells.parameters()), gradients)
            oracle.assert_close(update.state, want.state)
            assert list(inputs) == ["x"]
            assert state[0] is state[1] is zero


def test_the_callers_tensors_are_not_touched():
    case = make("dict", T)
    state = case.random_state()
    before = oracle.tree_map(torch.clone, state)
    x, y = case.xs.clone(), case.ys.clone()
    for memory in BUDGETS.values():
        run = unroll(case, bptt.TruncatedBPTT(2, 5), state=state, memory=memory, is_start=some_resets(T, 2))
        assert [update.t1 for update in run][-1] == T
        assert all(torch.equal(a, b) for a, b in zip(oracle.leaves(state), oracle.leaves(before), strict=True))
        assert not any(leaf.requires_grad for leaf in oracle.leaves(state))
        assert all(leaf.grad is None for leaf in oracle.leaves(state))
    assert torch.equal(x, case.xs)
    assert torch.equal(y, case.ys)
    assert not case.xs.requires_grad


@dataclass
class Unregistered:
    h: torch.Tensor


@pytest.mark.parametrize("entry", ["unroll", "backward", "evaluate"])
@pytest.mark.parametrize("state", [Unregistered(torch.zeros(2, 4)), {"h": 0.0}, (torch.zeros(2, 4), "h")], ids=str)
def test_leaves_that_are_no_tensors(entry, state):
    """An unregistered dataclass is an error, not a leaf; so are numbers and strings."""
    case = make("dict", T)
    chunk = (case.xs, case.ys)
    call, data, more = {
        "unroll": (bptt.unroll, [chunk], {"strategy": bptt.FullBPTT()}),
        "backward": (bptt.backward, chunk, {}),
        "evaluate": (bptt.evaluate, [chunk], {}),
    }[entry]
    with pytest.raises(TypeError) as info:
        call(engine(case), square, data, state, **more)
    assert "\n" not in str(info.value)
    assert "state" in str(info.value)


def test_a_registered_dataclass_is_a_state():
    @dataclass
    class Registered:
        h: torch.Tensor
        n: torch.Tensor

    torch.utils._pytree.register_dataclass(Registered)
    lift = nn.Parameter(torch.ones(4, dtype=F64))

    def step(v, s):
        out, h, n = leaky(v * lift, s.h, s.n)
        return out, Registered(h, n)

    x = torch.randn(T, 2, 4, dtype=F64)
    begin = Registered(torch.zeros(2, 4, dtype=F64), torch.zeros(2, dtype=torch.int64))
    grads = []
    for memory in BUDGETS.values():
        update = bptt.backward(bptt.scan(step), square, (x, x), begin, memory=memory, reduction="sum")
        assert isinstance(update.state, Registered)
        assert update.state.n.tolist() == [T, T]
        grads += oracle.gradients([lift])
    for g in grads[1:]:
        oracle.assert_close([g], grads[:1])


@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
def test_a_model_that_cuts_its_own_gradient(memory):
    """A step that returns a detached part, or no differentiable state at all."""
    lin = nn.Linear(4, 4, dtype=F64)
    x, y = torch.randn(T, 2, 4, dtype=F64), torch.randn(T, 2, 4, dtype=F64)

    def half(v, s):
        a, b = s
        a = torch.tanh(lin(a + b) + v)
        return a, (a, 0.5 * a.detach() + b)

    def none(v, s):
        out = torch.tanh(lin(s[0] + s[1]) + v)
        return out, (out.detach(), s[1].detach())

    for step in (half, none):
        s, total = (torch.zeros(2, 4, dtype=F64), torch.zeros(2, 4, dtype=F64)), 0.0
        begin = s
        for t in range(T):
            out, s = step(x[t], s)
            total = total + square(out, y[t]).mean()
        total.backward()
        want = oracle.gradients(lin.parameters())
        bptt.backward(bptt.scan(step), square, (x, y), begin, memory=memory, reduction="sum")
        oracle.assert_close(oracle.gradients(lin.parameters()), want)
