"""A recurrence with a state of its own is refused by name where steps run twice; one without never is."""

import random
import warnings

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import square
from support.impure import IMPURE, Attribute, Listed, Step

F64 = torch.float64
T = 13
RUNS = {
    "2 slots of 3": {"memory": bptt.Checkpoints(2, 3)},
    "single steps": {"memory": bptt.Checkpoints(3, 1)},
    "bytes": {"memory": "2KiB"},
    "k1 < k2": {"strategy": bptt.TruncatedBPTT(3, 6)},
    "k1 = 1": {"strategy": bptt.TruncatedBPTT(1, 4)},
    "adaptive": {"strategy": bptt.AdaptiveTruncatedBPTT(k_max=4, window=5)},
}


def data():
    torch.manual_seed(0)
    return torch.randn(T, 2, 3, dtype=F64), torch.randn(T, 2, 4, dtype=F64)


def run(model, xs, ys, loss=square, state=None, strategy=None, **options):
    state = torch.zeros(2, 4, dtype=F64) if state is None else state
    strategy = strategy or bptt.FullBPTT()
    return bptt.unroll(model, loss, [(xs, ys)], state, strategy=strategy, reduction="sum", **options)


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(("make", "name"), IMPURE.values(), ids=IMPURE)
def test_a_hidden_state_is_named_in_the_first_window(make, name, options):
    xs, ys = data()
    torch.manual_seed(1)
    with pytest.raises(ValueError, match=name) as caught:
        next(run(bptt.scan(make()), xs, ys, **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_silence_at_the_start_hides_nothing(options):
    """Zero state and zero inputs in the first windows; and two states that are kept, only one of them to the point."""

    class Silent(Attribute):
        calls = 0

        def forward(self, x, h):
            self.calls += 1
            h = torch.tanh(0.5 * h + self.membrane + x.sum(-1, keepdim=True) + 0 * self.inner.weight.sum())
            self.membrane = h[0].detach()
            return h, h

    xs, ys = data()
    xs[:8] = 0
    with pytest.raises(ValueError, match=r"the attribute step.membrane:"):
        next(run(bptt.scan(Silent()), xs, ys, **options))


class Whole(nn.Module):
    """Over all steps of a call, as layers for spiking networks are."""

    def __init__(self, buffer: bool):
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.8, dtype=F64))
        if buffer:
            self.register_buffer("membrane", torch.zeros(2, 3, dtype=F64))
        else:
            self.membrane = torch.zeros(2, 3, dtype=F64)

    def forward(self, xs, state):
        m, outputs = self.membrane.detach(), []
        for x in xs:
            m = self.decay * m + x
            outputs.append(m)
        self.membrane = m
        return torch.stack(outputs), state


@pytest.mark.parametrize("buffer", [False, True], ids=["attribute", "buffer"])
def test_a_graph_held_inside_beside_a_state_that_says_nothing(buffer):
    xs, _ = data()
    for options in RUNS.values():
        if options is not RUNS["adaptive"]:  # which needs a state that credit goes through
            model = Whole(buffer)
            held = model.membrane
            if buffer and options is RUNS["bytes"]:
                options = {"memory": 480}  # more holds the window whole, and buffers are put back
            with pytest.raises(ValueError, match="membrane"):
                next(run(model, xs, None, lambda y, _: y, torch.zeros(2, dtype=F64), **options))
            assert buffer or options.get("memory") or model.membrane is held


def test_compare_finds_it_without_a_budget():
    """It starts every run from the same state, which says nothing of a hidden one."""
    xs, ys = data()
    for make in (Attribute, Listed):
        with pytest.raises(ValueError, match="membrane"):
            bptt.compare(
                bptt.scan(make()), square, (xs, ys), torch.zeros(2, 4, dtype=F64), strategies=[bptt.TruncatedBPTT(4)]
            )


class Generating(Step):
    """Numbers of a generator of its own, which replays don't put back."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def get(self):
        if isinstance(self.generator, random.Random):
            return self.generator.random()
        return torch.rand(4, generator=self.generator, dtype=F64)

    def put(self, value):
        pass


@pytest.mark.parametrize("make", [torch.Generator, lambda: random.Random(3)], ids=["torch", "random"])
def test_a_generator_of_its_own(make):
    xs, ys = data()
    with pytest.raises(ValueError, match=r"generator step.generator"):
        next(run(bptt.scan(Generating(make())), xs, ys, **RUNS["2 slots of 3"]))
    assert len(list(run(bptt.scan(Generating(make())), xs, ys, **RUNS["k1 < k2"]))) == 5  # drawn afresh, as any noise


class Harmless(Step):
    """Attributes that change and don't matter: made late, counters, a cache, records of what was seen."""

    def __init__(self):
        super().__init__()
        self.scale, self.calls, self.seen, self.cache = None, 0, [], {}
        self.register_buffer("counted", torch.zeros((), dtype=torch.int64))

    def get(self):
        if self.scale is None:
            self.scale = torch.full((4,), 0.5, dtype=F64)
        return self.cache.setdefault("scale", self.scale * 2)

    def put(self, value):
        self.calls += 1
        self.counted += 1
        self.seen.append(value.detach())
        self.last = value


class Normed(nn.Module):
    def __init__(self, wrap=nn.utils.parametrizations.spectral_norm):
        super().__init__()
        self.inner = wrap(nn.Linear(7, 4, dtype=F64))
        self.norm = nn.BatchNorm1d(4, dtype=F64)
        self.drop = nn.Dropout(0.3)

    def forward(self, x, h):
        h = torch.tanh(self.norm(self.inner(torch.cat([x, h], -1))))
        return self.drop(h), h


class RunningNorm(Step):
    """A normalisation of the user's: statistics in buffers, under the names that torch gives them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4, dtype=F64))

    def get(self):
        return -self.running_mean.clone()

    def put(self, value):
        self.running_mean.lerp_(value.detach(), 0.1)


PURE = {
    "harmless": Harmless,
    "spectral norm": Normed,
    "old spectral norm": lambda: Normed(lambda layer: old_spectral_norm(layer)),
    "weight norm": lambda: Normed(nn.utils.parametrizations.weight_norm),
    "running statistics": RunningNorm,
}


def old_spectral_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(layer)


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("make", PURE.values(), ids=PURE)
def test_no_false_alarm(make, options):
    xs, ys = data()
    torch.manual_seed(1)
    assert list(run(bptt.scan(make()), xs, ys, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("options", [RUNS["2 slots of 3"], RUNS["k1 < k2"]], ids=["memory", "k1 < k2"])
def test_no_false_alarm_in_low_precision(dtype, options):
    model = nn.LSTM(3, 4, 2, dropout=0.4, dtype=dtype)
    xs, ys = (leaf.to(dtype) for leaf in data())
    assert list(bptt.unroll(model, square, [(xs, ys)], **{"strategy": bptt.FullBPTT(), **options}))
    with torch.autocast("cpu", torch.bfloat16):
        step = bptt.scan(Normed().float())
        assert list(run(step, *(leaf.float() for leaf in data()), state=torch.zeros(2, 4), **options))


def test_the_question_itself_changes_nothing():
    """Attributes, containers and buffers are those of a run that asks nothing: each step was run as often."""
    xs, ys = data()
    step = Harmless()
    seen, buffer = step.seen, step.counted
    list(run(bptt.scan(step), xs, ys, **RUNS["k1 < k2"]))
    runs = sum(update.forward_steps for update in run(bptt.scan(Harmless()), xs, ys, **RUNS["k1 < k2"]))
    assert step.seen is seen
    assert step.counted is buffer
    assert len(seen) == step.calls == int(buffer) == runs


def test_a_clock_in_a_buffer_is_put_back_by_replays_but_not_by_windows_that_overlap():
    class Clock(Step):
        def __init__(self):
            super().__init__()
            self.register_buffer("clock", torch.zeros((), dtype=F64))

        def get(self):
            return self.clock.clone()

        def put(self, value):
            self.clock += 0.1

    xs, ys = data()
    found = []
    for memory in (None, *(options["memory"] for options in RUNS.values() if "memory" in options)):
        torch.manual_seed(1)
        model = bptt.scan(Clock())
        list(run(model, xs, ys, memory=memory))
        found.append(oracle.gradients(model.parameters()))
    for other in found[1:]:
        oracle.assert_close(other, found[0])
    with pytest.raises(ValueError, match="clock"):
        next(run(bptt.scan(Clock()), xs, ys, **RUNS["k1 < k2"]))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_an_optimiser_that_steps_in_the_backward_pass(make):
    xs, ys = data()
    for memory, fits in ((bptt.Checkpoints(2, 3), False), (bptt.Checkpoints(1, T), True), (None, True)):
        model = nn.GRU(3, 4, dtype=F64)
        for p in model.parameters():
            optimizer = make([p], lr=0.1)
            p.register_post_accumulate_grad_hook(lambda p, own=optimizer: own.step())
        updates = bptt.unroll(model, square, [(xs, ys)], memory=memory, strategy=bptt.TruncatedBPTT(T))
        if fits:
            assert list(updates)
        else:
            with pytest.raises(ValueError, match="optimiser steps in a hook"):
                next(updates)


def test_an_embedding_with_max_norm_changes_its_weight_and_is_no_optimiser():
    embedding, inner = nn.Embedding(5, 3, max_norm=0.5, dtype=F64), nn.Linear(7, 4, dtype=F64)

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.inner = embedding, inner

        def forward(self, x, h):
            h = torch.tanh(self.inner(torch.cat([self.embedding(x), h], -1)))
            return h, h

    xs = torch.randint(5, (T, 2))
    assert list(run(bptt.scan(Embedded()), xs, data()[1], **RUNS["2 slots of 3"]))


def test_cached_parametrizations():
    xs, ys = data()
    model = bptt.scan(Normed())
    for options in (RUNS["2 slots of 3"], RUNS["k1 < k2"]):
        with nn.utils.parametrize.cached(), pytest.raises(ValueError, match=r"cached\(\).*step.inner"):
            next(run(model, xs, ys, **options))
    with nn.utils.parametrize.cached():
        assert list(run(model, xs, ys))
