"""Random problems against plain autograd: sizes, windows, chunks, resets, masks, dtypes, budgets, cells, states."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from support import oracle
from support.cases import NAMES, Case, chunks, make, square
from support.runs import engine, seed
from support.strategies_under_test import Table, windows

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-4}


@st.composite
def strategies(draw, length: int):
    kind = draw(st.sampled_from(["full", "truncated", "truncated", "artbp"]))
    if kind == "full":
        return bptt.FullBPTT()
    if kind == "truncated":
        k1 = draw(st.integers(1, length + 1))
        return bptt.TruncatedBPTT(k1, draw(st.integers(k1, length + k1)))
    law = draw(
        st.one_of(
            st.floats(1.2, 8).map(lambda m: bptt.ConstantLaw(mean_length=m)),
            st.tuples(st.floats(1.5, 6), st.floats(1.5, 8)).map(lambda p: bptt.PolynomialLaw(*p)),
        )
    )
    return bptt.ARTBP(law=law, every=draw(st.integers(1, 4)))


def rows(draw, length: int, batch: int, rate) -> torch.Tensor | None:
    """A random table (T, B) of booleans, or none at all."""
    if not draw(st.booleans()):
        return None
    g = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return torch.rand(length, batch, generator=g) < draw(st.sampled_from(rate))


@dataclass
class Drawn:
    case: Case
    strategy: Any
    is_start: torch.Tensor | None
    mask: torch.Tensor | None
    cuts: list
    memory: Any
    dtype: torch.dtype
    state: Any
    initial: Any
    clip: float | None
    reduction: str
    time_dim: int
    number: int

    @property
    def length(self) -> int:
        return len(self.case.xs)

    def problem(self, **more):
        initial = self.case.zeros if self.initial is None else self.initial
        more = {"is_start": self.is_start, "mask": self.mask, "initial": initial, "clip": self.clip} | more
        return self.case.problem(state=self.state, **more)

    def divisor(self) -> float:
        if self.reduction == "sum":
            return 1.0
        if isinstance(self.strategy, bptt.FullBPTT):
            return float(self.length)
        return self.strategy.k1 if isinstance(self.strategy, bptt.TruncatedBPTT) else self.strategy.law.mean_length

    def keywords(self) -> dict:
        own = {} if self.initial is None else {"initial_state": self.initial}
        if self.case.step is not None:
            own = {"initial_state": self.initial or self.case.zeros, "state_batch_dim": self.case.batch_dim}
        more = {"strategy": self.strategy, "memory": self.memory, "reduction": self.reduction}
        return own | more | {"clip_cotangent": self.clip, "time_dim": self.time_dim, "generator": seed(self.number)}

    def model(self):
        model = engine(self.case)
        return Turned(model) if self.time_dim else model

    def stream(self) -> list:
        pieces = chunks(self.case.xs, self.case.ys, self.is_start, self.mask, cuts=self.cuts)
        turn = [[None if v is None else v.transpose(0, 1) for v in piece] for piece in pieces]
        return [tuple(piece) for piece in turn] if self.time_dim else pieces

    def unroll(self):
        state = self.state
        if self.time_dim and state is None and self.initial is None:
            state = self.case.zeros()  # `Turned` is no layer of torch
        more = self.keywords()
        if self.time_dim:
            more |= {"state_batch_dim": self.case.batch_dim, "initial_state": self.initial or self.case.zeros}
        return bptt.unroll(self.model(), square, self.stream(), state, **more)


class Turned(nn.Module):
    """A batch-first recurrence made of a time-first one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs, state):
        outputs, state = self.inner(inputs.transpose(0, 1), state)
        return outputs.transpose(0, 1), state


@st.composite
def problems(draw, cells=tuple(NAMES), random_too: bool = True):
    length, batch = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float64, torch.float32]))
    name = draw(st.sampled_from(cells))
    case = make(name, length, B=batch, hidden=draw(st.integers(1, 4)), dtype=dtype, seed=draw(st.integers(0, 99)))
    strategy = draw(strategies(length))
    memory = draw(
        st.one_of(
            st.none(),
            st.tuples(st.integers(1, 5), st.integers(1, 6)).map(lambda p: bptt.Checkpoints(*p)),
            st.sampled_from(["1MiB", "64KiB", "30KB"] if dtype == torch.float64 else ["1MiB", "200KB"]),
        )
    )
    state = case.random_state(draw(st.integers(0, 99))) if draw(st.booleans()) else None
    fresh = case.random_state(draw(st.integers(100, 199)))
    return Drawn(
        case=case,
        strategy=strategy,
        is_start=rows(draw, length, batch, [0.1, 0.3, 0.9]),
        mask=rows(draw, length, batch, [0.5, 0.9]),
        cuts=draw(st.lists(st.integers(1, max(1, length - 1)), max_size=length)) if length > 1 else [],
        memory=memory,
        dtype=dtype,
        state=state,
        initial=(lambda: fresh) if draw(st.booleans()) else None,
        clip=draw(st.sampled_from([None, None, None, 0.01, 0.1])),
        reduction=draw(st.sampled_from(["sum", "mean"])),
        time_dim=draw(st.sampled_from([0, 0, 1])),
        number=draw(st.integers(0, 99)),
    )


@given(problems())
def test_gradient_losses_and_states(drawn):
    parameters, tolerance = drawn.case.parameters(), TOLERANCE[drawn.dtype]
    updates = list(drawn.unroll())
    got = oracle.gradients(parameters)
    table = windows(drawn.strategy, drawn.length, updates)
    assert [(u.start, u.t0, u.t1) for u in updates] == [(w.start, w.first, w.stop) for w in table]
    done = list(oracle.run(drawn.problem(), table, drawn.divisor()))
    oracle.assert_close(got, oracle.gradients(parameters), tolerance)
    oracle.assert_close([u.loss.double() for u in updates], [d.total for d in done], tolerance)
    for update, window in zip(updates, done, strict=True):
        oracle.assert_close(update.state, window.state, tolerance)


@given(problems())
def test_training_runs(drawn):
    """SGD in place after every update, against the same by hand."""
    if drawn.dtype != torch.float64:
        return
    parameters = drawn.case.parameters()
    begin = [p.detach().clone() for p in parameters]

    def update():
        with torch.no_grad():
            for p in parameters:
                p -= 0.01 * p.grad
                p.grad = None

    updates = []
    for u in drawn.unroll():
        updates.append(u)
        update()
    got = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, b in zip(parameters, begin, strict=True):
            p.copy_(b)
    list(oracle.run(drawn.problem(), windows(drawn.strategy, drawn.length, updates), drawn.divisor(), update))
    oracle.assert_close(got, [p.detach() for p in parameters], 1e-11)


@given(problems(), st.data())
def test_backward_is_one_chunk_merged(drawn, data):
    """Inputs and states as leaves; the divisor is T whatever the strategy."""
    case, tolerance = drawn.case, TOLERANCE[drawn.dtype]
    cuts = {u.t1 for u in drawn.unroll()}
    oracle.gradients(case.parameters())
    leaf = case.xs.clone().requires_grad_()
    begin = oracle.tree_map(
        lambda t: t.detach().clone().requires_grad_() if oracle.differentiable(t) else t, case.random_state(7)
    )
    tensors = [leaf, *(t for t in oracle.leaves(begin) if t.requires_grad), *case.parameters()]
    more = drawn.keywords() | {"time_dim": 0, "state_batch_dim": case.batch_dim}
    more |= {"initial_state": drawn.initial or case.zeros}
    chunk = bptt.Chunk(leaf, case.ys, drawn.is_start, drawn.mask)
    update = bptt.backward(engine(case), square, chunk, begin, **more)
    got = oracle.gradients(tensors)
    drawn.state, case.xs, drawn.cuts = begin, leaf, []
    ends = [type("End", (), {"t1": t}) for t in cuts]
    divisor = 1.0 if drawn.reduction == "sum" else float(drawn.length)
    done = list(oracle.run(drawn.problem(), windows(drawn.strategy, drawn.length, ends), divisor))
    want = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, oracle.gradients(tensors), strict=True)]
    got = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, got, strict=True)]
    oracle.assert_close(got, want, tolerance)
    oracle.assert_close([update.loss.double()], [sum(d.total for d in done)], tolerance)
    oracle.assert_close(update.state, done[-1].state, tolerance)


@given(problems())
def test_evaluate_and_chunks(drawn):
    case, tolerance = drawn.case, TOLERANCE[drawn.dtype]
    drawn.time_dim, drawn.clip = 0, None
    more = {"initial_state": drawn.initial or case.zeros, "state_batch_dim": case.batch_dim}
    result = bptt.evaluate(engine(case), square, drawn.stream(), drawn.state, **more)
    (done,) = oracle.run(drawn.problem(), oracle.full(drawn.length))
    oracle.gradients(case.parameters())
    oracle.assert_close([result.loss.double()], [done.total], tolerance)
    oracle.assert_close(result.state, done.state, tolerance)
    assert result.steps == drawn.length


@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 30))
def test_windows_cover_every_step_once(length, k1, reach):
    table = list(bptt.TruncatedBPTT(k1, k1 + reach).windows(lambda t: min(t, length), lambda: 0.5))
    assert [w.first for w in table] == list(range(0, length, k1))
    assert [w.stop for w in table] == [min(w.first + k1, length) for w in table]
    assert [w.start for w in table] == [max(0, w.first - reach) for w in table]
    for w, after in itertools.pairwise(table):
        assert w.keep == after.start
        assert w.start <= w.keep <= w.stop


@st.composite
def tables(draw, length: int, batch: int):
    """Windows that no strategy of ours makes: any overlap, any kept step, weights by row."""
    out, first, start = [], 0, 0
    while first < length:
        stop = draw(st.integers(first + 1, length))
        keep = draw(st.integers(start, stop))
        g = torch.Generator().manual_seed(draw(st.integers(0, 999)))
        boundaries = draw(st.lists(st.integers(start + 1, stop), max_size=3))
        weights = {
            t: torch.rand(batch, generator=g, dtype=torch.float64) * 2 if draw(st.booleans()) else torch.tensor(1.5)
            for t in boundaries
            if t < stop
        }
        out.append(oracle.Window(start, first, stop, keep, weights))
        first, start = stop, keep
    return out


@given(problems(), st.data())
def test_any_table_of_windows(drawn, data):
    parameters, tolerance = drawn.case.parameters(), TOLERANCE[drawn.dtype]
    table = data.draw(tables(drawn.length, drawn.case.xs.shape[1]))
    drawn.strategy, drawn.reduction = Table(table), "sum"
    more = drawn.keywords() | {"state_batch_dim": drawn.case.batch_dim}
    drawn.keywords = lambda: more
    updates = list(drawn.unroll())
    got = oracle.gradients(parameters)
    done = list(oracle.run(drawn.problem(), table))
    oracle.assert_close(got, oracle.gradients(parameters), tolerance)
    for update, window in zip(updates, done, strict=True):
        oracle.assert_close(update.state, window.state, tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_itself_against_finite_differences(name):
    """Its full gradient along a random direction, so that it can be trusted with the rest."""
    case = make(name, 4)
    grads = oracle.gradient_of(case.problem(), oracle.full(4), case.parameters())
    direction = [torch.randn_like(p) for p in case.parameters()]
    slope = sum(float((a.conj() * d).real.sum()) for a, d in zip(grads, direction, strict=True))
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(case.parameters(), direction, strict=True):
                p += step * d
        ends.append(float(oracle.forward(case.problem(), oracle.full(4)[0], None).total.detach()))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-6)
