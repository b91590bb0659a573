"""Truncated BPTT: its windows as a table, and its gradient and training runs against the window definition."""

import pytest
import torch

import bptt
from support import oracle
from support.cases import NAMES, make, square
from support.runs import check, gradient, seed, unroll


def table(strategy, length: int, chunk: int = 3):
    """(start, first, stop, keep) of each window, over a stream read in chunks."""
    asked = []

    def upto(t: int) -> int:
        asked.append(t)
        return min(t, length)

    def draw() -> float:
        raise AssertionError("truncated BPTT draws nothing")

    return [(w.start, w.first, w.stop, w.keep) for w in strategy.windows(upto, draw) if not w.weights]


@pytest.mark.parametrize(
    ("k1", "k2", "length", "rows"),
    [
        (3, 3, 7, [(0, 0, 3, 3), (3, 3, 6, 6), (6, 6, 7)]),
        (1, 1, 3, [(0, 0, 1, 1), (1, 1, 2, 2), (2, 2, 3)]),
        (1, 3, 4, [(0, 0, 1, 0), (0, 1, 2, 0), (0, 2, 3, 1), (1, 3, 4)]),
        (2, 5, 9, [(0, 0, 2, 0), (0, 2, 4, 1), (1, 4, 6, 3), (3, 6, 8, 5), (5, 8, 9)]),
        (4, 5, 4, [(0, 0, 4)]),
        (4, 5, 1, [(0, 0, 1)]),
        (10, 10, 7, [(0, 0, 7)]),
        (3, 9, 7, [(0, 0, 3, 0), (0, 3, 6, 0), (0, 6, 7)]),
    ],
)
def test_table_of_windows(k1, k2, length, rows):
    got = table(bptt.TruncatedBPTT(k1, k2), length)
    assert len(got) == len(rows)
    for g, r in zip(got, rows, strict=True):
        assert g[: len(r)] == r  # what the last window keeps is of no use to anyone


def test_windows_for_every_k1_k2_and_length():
    for length in range(1, 13):
        for k1 in range(1, length + 2):
            for k2 in range(k1, length + k1 + 2):
                got = table(bptt.TruncatedBPTT(k1, k2), length)
                want = [tuple(w[:4]) for w in oracle.truncated(k1, k2, length)]
                assert got[:-1] == want[:-1]
                assert got[-1][:3] == want[-1][:3]
                assert sum(stop - first for _, first, stop, _ in got) == length


def test_k2_defaults_to_k1():
    assert table(bptt.TruncatedBPTT(4), 10) == table(bptt.TruncatedBPTT(4, 4), 10)
    case = make("gru", 7)
    oracle.assert_close(gradient(case, bptt.TruncatedBPTT(3))[0], gradient(case, bptt.TruncatedBPTT(3, 3))[0], 0.0)


@pytest.mark.parametrize("length", [1, 2, 5, 8, pytest.param(12, marks=pytest.mark.deep)])
def test_window_definition_for_all_k1_k2(length):
    """Every 1 <= k1 <= k2 <= T + k1 - 1, short last blocks included, two layers."""
    case = make("rnn2", length, hidden=3)
    case.model.nonlinearity = "tanh"
    for k1 in range(1, length + 1):
        for k2 in range(k1, length + k1):
            check(case, bptt.TruncatedBPTT(k1, k2), cuts=range(0, length, 5))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 4), (2, 3), (3, 3), (3, 8), (5, 6), (4, 12)])
def test_window_definition_for_every_recurrence(name, k1, k2):
    check(make(name, 9), bptt.TruncatedBPTT(k1, k2), cuts=(2, 3, 7))


@pytest.mark.parametrize("length", [1, 4, 7, 11])
@pytest.mark.parametrize("kind", ["square", "tanh", "last"])
def test_closed_form(length, kind):
    """s_t = a s_{t-1} + x_t: dL/da = Σ_t l'(s_t) Σ_{j=1..min(t,K)} a^{j-1} s_{t-j}, with t counted from 1."""
    a0, s0 = 0.83, 0.4
    x = torch.randn(length, 1, dtype=torch.float64)
    s = [s0]
    for t in range(length):
        s.append(a0 * s[-1] + float(x[t, 0]))
    slope = {
        "square": lambda v, t: 2 * v,
        "tanh": lambda v, t: 1 - float(torch.tensor(v, dtype=torch.float64).tanh()) ** 2,
        "last": lambda v, t: float(t == length),
    }[kind]

    def loss(outputs, targets):
        if kind == "last":
            return outputs * targets
        return outputs.square() if kind == "square" else outputs.tanh()

    last = torch.zeros_like(x)
    last[-1] = 1.0
    for k1 in range(1, length + 1):
        for k2 in range(k1, length + k1):
            a = torch.tensor(a0, dtype=torch.float64, requires_grad=True)
            model = bptt.scan(lambda v, h, a=a: (a * h + v, a * h + v))
            state = torch.full((1,), s0, dtype=torch.float64)
            strategy = bptt.TruncatedBPTT(k1, k2)
            for _ in bptt.unroll(model, loss, [(x, last)], state, strategy=strategy, reduction="sum"):
                pass
            want = 0.0
            for t in range(1, length + 1):
                block = (t - 1) // k1 * k1
                terms = min(t, t - max(0, block - (k2 - k1)))
                want += slope(s[t], t) * sum(a0 ** (j - 1) * s[t - j] for j in range(1, terms + 1))
            assert float(a.grad) == pytest.approx(want, rel=1e-12, abs=1e-13)


def test_the_widely_copied_loop_is_not_ours():
    """x_{t+1} = w x_t, l_t = x_t: dx_3/dw = 3 w² x_0 = 0.108. Loops that re-use stored `.grad`s find 0.2880."""
    for k2 in (3, 4, 10):
        w = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        model = bptt.scan(lambda v, x, w=w: (w * x, w * x))
        state = torch.full((1,), 0.9, dtype=torch.float64)
        got = []
        for _ in bptt.unroll(
            model,
            lambda outputs, targets: outputs,
            [(torch.zeros(3, 1, dtype=torch.float64), None)],
            state,
            strategy=bptt.TruncatedBPTT(k1=1, k2=k2),
            reduction="sum",
        ):
            got.append(float(w.grad))
            w.grad = None
        assert got == pytest.approx([0.9, 2 * 0.2 * 0.9, 3 * 0.2**2 * 0.9], rel=1e-14)


@pytest.mark.parametrize("name", ["lstm", "gru2", "dict", "named", "complex"])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (3, 3), (1, 4), (2, 5), (4, 6), (5, 99)])
@pytest.mark.parametrize("cuts", [(), (1, 2, 9), tuple(range(23))])
@pytest.mark.thin
def test_training_equals_a_hand_written_loop(name, k1, k2, cuts):
    """SGD steps in place between updates: a window starts from the state that the window before it computed."""
    runs = []
    for by_hand in (True, False):
        case = make(name, 23)
        optimizer = torch.optim.SGD(case.parameters(), lr=0.01, momentum=0.9)

        def update(optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()

        if by_hand:
            losses = [done.total for done in oracle.run(case.problem(), oracle.truncated(k1, k2, 23), k1, update)]
        else:
            losses = []
            for done in unroll(case, bptt.TruncatedBPTT(k1, k2), cuts=cuts, reduction="mean"):
                losses.append(done.loss)
                update()
        runs.append(([p.detach().clone() for p in case.parameters()], losses))
    untouched = [p.detach() for p in make(name, 23).parameters()]
    assert all(not torch.equal(p, q) for p, q in zip(runs[0][0], untouched, strict=True))
    oracle.assert_close(runs[1][0], runs[0][0], 1e-11)
    oracle.assert_close(runs[1][1], runs[0][1], 1e-11)


def test_training_with_adam_and_clipping():
    """A clip by the user between updates, and an optimiser with state."""
    results = []
    for by_hand in (True, False):
        case = make("lstm2", 20)
        optimizer = torch.optim.Adam(case.parameters(), lr=0.02)
        norms = []

        def update(case=case, optimizer=optimizer, norms=norms):
            norms.append(torch.nn.utils.clip_grad_norm_(case.parameters(), 0.05).detach())
            optimizer.step()
            optimizer.zero_grad()

        if by_hand:
            for _ in oracle.run(case.problem(), oracle.truncated(3, 7, 20), 3, update):
                pass
        else:
            for _ in unroll(case, bptt.TruncatedBPTT(3, 7), cuts=(6, 7), reduction="mean"):
                update()
        assert max(norms) > 0.05  # it does clip
        results.append([*(p.detach().clone() for p in case.parameters()), *norms])
    oracle.assert_close(results[1], results[0], 1e-10)


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (4, 4), (2, 5)])
def test_forward_steps(k1, k2):
    case = make("gru", 11)
    updates = list(unroll(case, bptt.TruncatedBPTT(k1, k2)))
    assert [u.start for u in updates] == [max(0, a - (k2 - k1)) for a in range(0, 11, k1)]
    assert [u.forward_steps for u in updates] == [u.t1 - u.start for u in updates]


def test_default_path_calls_the_model_once_a_window():
    """k1 = k2, no budget: one forward call of k1 steps and one backward."""
    case, calls = make("lstm", 12), []

    def model(inputs, state):
        calls.append(len(inputs))
        return case.model(inputs, state)

    def loss(outputs, targets):
        calls.append("loss")
        return square(outputs, targets)

    zeros = case.zeros()
    stream = [(case.xs[a : a + 4], case.ys[a : a + 4]) for a in (0, 4, 8)]
    for _ in bptt.unroll(model, loss, stream, zeros, strategy=bptt.TruncatedBPTT(4), generator=seed()):
        pass
    assert calls.count(4) == 3
    assert [c for c in calls if c != "loss"] == [4, 4, 4]
    assert calls.count("loss") <= 4  # once a window; a second length may be tried, once, where T = B
