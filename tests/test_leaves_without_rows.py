"""Leaves of the state without batch rows, such as a clock: carried as they are where rows reset, clip or cut."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.refusals import refused
from support.runs import seed

F64 = torch.float64
KEEP = nn.Parameter(torch.full((3,), 0.7, dtype=F64))
X, H0 = torch.randn(9, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, dtype=F64)
STARTS = torch.zeros(9, 2, dtype=torch.bool)
STARTS[4, 1] = True


def timed(x, s):
    h = torch.tanh(KEEP * s["h"] + x)
    return h, {"clock": s["clock"] + 1, "h": h}


def plain(x, s):
    h = torch.tanh(KEEP * s["h"] + x)
    return h, {"h": h}


def loss(outputs, targets):
    return outputs.square().mean(2)


CLOCKS = {
    "none": ({"h": 0, "clock": None}, torch.tensor(0)),
    "int": (0, torch.tensor(0)),
    "floating": (0, torch.tensor(0.0, dtype=F64)),
    "last axis": (-2, torch.tensor(0)),
    "a vector without rows": ({"clock": None, "h": 0}, torch.zeros(5, dtype=torch.int64)),
}
RUNS = {
    "resets": {"starts": STARTS},
    "clip": {"clip_cotangent": 0.05},
    "clip and resets": {"clip_cotangent": 0.05, "starts": STARTS},
    "budget": {"starts": STARTS, "memory": bptt.Checkpoints(2, 2)},
    "truncated": {"starts": STARTS, "strategy": bptt.TruncatedBPTT(2, 5)},
    "artbp": {"starts": STARTS, "strategy": bptt.ARTBP(bptt.ConstantLaw(3))},
    "artbp, rows": {"starts": STARTS, "strategy": bptt.ARTBP(bptt.ConstantLaw(3), per_row=True)},
}


def gradient(step, zero, dims, starts=None, **options):
    KEEP.grad = None
    chunk = bptt.Chunk(X, None, starts)
    model = bptt.scan(step)
    update = bptt.backward(
        model, loss, chunk, zero, initial_state=zero, state_batch_dim=dims, generator=seed(), **options
    )
    return oracle.gradients([KEEP]), update


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_clock_is_carried(clock, options):
    dims, zero = clock
    want = gradient(plain, {"h": H0}, 0, **options)[0]
    got, update = gradient(timed, {"h": H0, "clock": zero}, dims, **options)
    oracle.assert_close(got, want)
    assert (update.state["clock"] == 9).all()


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_a_clock_elsewhere(clock):
    dims, zero = clock
    states = {"plain": {"h": H0}, "timed": {"h": H0, "clock": zero}}
    options = {"initial_state": states["timed"], "state_batch_dim": dims}
    own = {"initial_state": states["plain"], "state_batch_dim": 0}
    chunk = bptt.Chunk(X, None, STARTS)
    want = bptt.evaluate(bptt.scan(plain), loss, [chunk], states["plain"], **own)
    got = bptt.evaluate(bptt.scan(timed), loss, [chunk], states["timed"], **options)
    oracle.assert_close(got.loss, want.loss)
    strategies = {"strategies": [bptt.TruncatedBPTT(2)], "params": [KEEP]}
    want = bptt.compare(bptt.scan(plain), loss, chunk, states["plain"], **own, **strategies)
    got = bptt.compare(bptt.scan(timed), loss, chunk, states["timed"], **options, **strategies)
    assert abs(got.entries[0].bias.value - want.entries[0].bias.value) < 1e-12
    if not zero.is_floating_point():
        want = bptt.diagnose(bptt.scan(plain), loss, chunk, states["plain"], **own, params=[KEEP])
        got = bptt.diagnose(bptt.scan(timed), loss, chunk, states["timed"], **options, params=[KEEP])
        oracle.assert_close([got.norms.nan_to_num(), got.growth_rates], [want.norms.nan_to_num(), want.growth_rates])


def test_a_shared_floating_leaf_is_diagnosed_with_all_rows_as_one():
    """Its Jacobian belongs to no row; the gradient is that of plain autograd."""
    state = {"h": H0, "clock": torch.zeros((), dtype=F64)}

    def step(x, s):
        h = torch.tanh(KEEP * s["h"] + x + s["clock"])
        return h, {"h": h, "clock": 0.5 * s["clock"] + 0.1 * h.mean()}

    found = bptt.diagnose(bptt.scan(step), loss, (X, None), state, state_batch_dim=0, params=[KEEP])
    s, total = state, 0.0
    for x in X:
        h, s = step(x, s)
        total = total + h.square().mean()
    (want,) = torch.autograd.grad(total, KEEP)
    assert found.rows == 1
    assert abs(found.gradient_norm - want.norm().item()) < 1e-10


def test_a_whole_reset_takes_the_clock_along():
    whole = torch.zeros(9, dtype=torch.bool)
    whole[4] = True
    for dims in (0, {"h": 0, "clock": None}, None):
        update = gradient(timed, {"h": H0, "clock": torch.tensor(0)}, dims, whole)[1]
        assert update.state["clock"] == 5


def test_rows_where_there_are_none():
    count = bptt.scan(lambda x, s: (x * s["a"], {"a": s["a"] + KEEP.mean()}))
    zero = {"a": torch.zeros((), dtype=F64)}
    options = {"initial_state": zero, "state_batch_dim": 0}
    refused(lambda: bptt.backward(count, loss, (X, None, STARTS), zero, **options), "rows")
    refused(lambda: bptt.backward(count, loss, (X, None), zero, clip_cotangent=1.0, **options), "clip_cotangent")
    strategy = bptt.ARTBP(bptt.ConstantLaw(3), per_row=True)
    refused(lambda: bptt.backward(count, loss, (X, None), zero, strategy=strategy, **options), "per_row")
    for dims in ({"h": 0}, {"h": 0, "clock": None, "more": 0}, {"h": 0, "clock": 0}, {"h": None, "clock": "x"}):
        state = {"h": H0, "clock": torch.tensor(0)}
        refused(
            lambda d=dims, s=state: bptt.backward(bptt.scan(timed), loss, (X, None), s, state_batch_dim=d),
            "state_batch_dim",
        )


def test_the_gate_leaves_them_alone():
    s = {"h": torch.ones(2, 3, requires_grad=True), "clock": torch.zeros((), requires_grad=True)}
    gated = bptt.scale_gradient(s, torch.tensor([2.0, 0.0]), state_batch_dim=0)
    (gated["h"].sum() + gated["clock"]).backward()
    assert s["h"].grad.tolist() == [[2.0] * 3, [0.0] * 3]
    assert s["clock"].grad == 1
