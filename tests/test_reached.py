"""Nothing to train, or a part that nothing trains: refused, or named once; and no false alarm (warnings are errors)."""

import functools
import warnings

import pytest
import torch
from torch import nn

import bptt
from bptt._guard.reached import in_sight
from support.refusals import refused

X, Y = torch.randn(12, 2, 3), torch.randn(12, 2, 4)
LOSS = bptt.per_step(nn.MSELoss())
ENTRIES = {
    "backward": {},
    "budget": {"memory": bptt.Checkpoints(2, 2)},
    "bytes": {"memory": "1MiB"},
    "truncated": {"strategy": bptt.TruncatedBPTT(3, 6)},
    "one step": {"strategy": bptt.TruncatedBPTT(1)},
    "artbp": {"strategy": bptt.ARTBP()},
    "adaptive": {"strategy": bptt.AdaptiveTruncatedBPTT(0.5, k_min=2, k_max=4)},
}


def run(model, loss=LOSS, state=None, merged=True, **options):
    """By `backward`, or by `unroll`."""
    if merged:
        return bptt.backward(model, loss, (X, Y), state, **options)
    options.setdefault("strategy", bptt.TruncatedBPTT(4))
    return list(bptt.unroll(model, loss, [(X, Y)], state, **options))


class Holder:
    """A recurrence that is no module, with one in an attribute."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, inputs, state):
        return self.layer(inputs, state)


def wrapped(kind):
    layer, cell = nn.GRU(3, 4), nn.GRUCell(3, 4)
    model = {
        "layer": layer,
        "cell": bptt.scan(cell),
        "lambda": lambda xs, s: layer(xs, s),
        "scan": bptt.scan(lambda x, s: (cell(x, s),) * 2),
        "partial": functools.partial(lambda net, xs, s: net(xs, s), layer),
        "method": layer.forward,
        "object": Holder(layer),
        "fused": bptt.nn.GRU(3, 4),
    }[kind]
    modules = [model] if kind == "fused" else [layer, cell]
    return model, modules, torch.zeros(2, 4) if kind in ("cell", "scan") else torch.zeros(1, 2, 4)


KINDS = ["layer", "cell", "lambda", "scan", "partial", "method", "object", "fused"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("merged", [True, False], ids=["backward", "unroll"])
def test_a_frozen_model(kind, options, merged):
    model, modules, state = wrapped(kind)
    run(model, state=state, merged=merged, **options)
    for module in modules:
        module.requires_grad_(False).zero_grad()
    refused(lambda: run(model, state=state, merged=merged, **options), "gradient", "frozen")


def test_a_frozen_model_beside_something_that_is_trained():
    model, head = nn.GRU(3, 4).requires_grad_(False), nn.Linear(4, 4)
    zeros = torch.zeros(1, 2, 4)
    run(model, lambda o, y: (head(o) - y).square())
    h0 = nn.Parameter(zeros.clone())
    run(model, state=h0)
    run(model, initial_state=h0)
    run(model, initial_state=lambda: h0 * 1)
    bptt.backward(model, LOSS, (X.clone().requires_grad_(), Y))
    hidden = {"head": nn.Linear(4, 4)}
    run(lambda xs, s: (hidden["head"](model(xs, s)[0]), s), state=zeros)
    bptt.evaluate(model, LOSS, [(X, Y)])
    bptt.diagnose(model, LOSS, (X, Y))


def test_a_recurrence_without_parameters_is_not_frozen():
    assert run(bptt.scan(lambda x, s: (s[..., :4] + 1, 0.5 * s)), state=torch.zeros(2, 4)).cotangent_norm > 0


class Parts(nn.Module):
    """Two heads, a layer that is never called, and a weight that acts on the step after."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.other = nn.GRU(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.spare = nn.Linear(2, 2)

    def forward(self, inputs, state):
        h, state = self.layer(inputs, state)
        return {"y": self.head(h), "value": self.other(h)}, state


def both(outputs, targets):
    return (outputs["y"] - targets).square() + outputs["value"]


@pytest.mark.parametrize("merged", [True, False], ids=["backward", "unroll"])
@pytest.mark.parametrize("options", ENTRIES.values(), ids=ENTRIES)
def test_a_parameter_that_nothing_reaches_is_named_once(merged, options):
    with pytest.warns(UserWarning, match=r"spare\.weight, spare\.bias") as seen:
        run(Parts(), both, torch.zeros(1, 2, 4), merged, **options)
    assert len(seen) == 1
    assert "head" not in str(seen[0].message)
    assert seen[0].filename == __file__


def test_it_comes_with_the_first_update_and_leaves_the_gradient():
    model = Parts()
    stream = bptt.unroll(model, both, [(X, Y)], torch.zeros(1, 2, 4), strategy=bptt.TruncatedBPTT(3))
    with pytest.warns(UserWarning, match="spare"):
        next(stream)
    assert model.head.weight.grad is not None
    assert len(list(stream)) == 3


def test_a_head_that_the_loss_forgets():
    with pytest.warns(UserWarning, match=r"other\.weight"):
        run(Parts(), lambda o, y: (o["y"] - y).square(), torch.zeros(1, 2, 4))


@pytest.mark.parametrize("merged", [True, False], ids=["backward", "unroll"])
def test_no_false_alarms(merged):
    zeros, model = torch.zeros(1, 2, 4), Parts()
    model.spare.requires_grad_(False)
    run(model, both, zeros, merged)
    run(model, both, zeros, merged)  # onto gradients that are there
    run(model, lambda o, y: ((o["y"] - y).square(), o["value"].detach().abs()), zeros, merged)  # a head looked at
    model.spare.requires_grad_(True)
    run(model, both, zeros, merged, params=list(model.head.parameters()))
    bptt.compare(model, both, (X, Y), zeros, strategies=[bptt.TruncatedBPTT(3)])
    masked = bptt.Chunk(X, Y, None, torch.zeros(12, 2, dtype=torch.bool))
    for _ in bptt.unroll(model, both, [masked], zeros, strategy=bptt.TruncatedBPTT(3)):
        pass


def test_a_parameter_that_only_later_windows_reach():
    """What acts a step later is beyond a graph of one step; an initial state beyond windows without a reset."""
    w, h0 = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(2, 3))

    class Delayed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.h0 = w, h0

        def forward(self, x, s):
            return s, self.w * x

    model = bptt.scan(Delayed())
    loss = lambda o, y: o.square().mean(2)  # noqa: E731
    start = {"initial_state": lambda: h0 * 1, "state_batch_dim": 0}
    for strategy in (bptt.TruncatedBPTT(1, 4), bptt.TruncatedBPTT(3), bptt.ARTBP(bptt.ConstantLaw(4))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            w.grad = h0.grad = None
            given = torch.zeros(2, 3)
            list(bptt.unroll(model, loss, [(X, Y)], given, strategy=strategy, **start))
            assert w.grad is not None
    h0.grad = None
    with pytest.warns(UserWarning, match="no gradient reached step.h0"):
        list(bptt.unroll(model, loss, [(X, Y)], torch.zeros(2, 3), strategy=bptt.TruncatedBPTT(3)))


def test_a_second_loss_is_not_aux():
    """A pair of losses with graphs is refused; logits, statistics and dicts beside the losses are aux."""
    model, zeros = Parts(), torch.zeros(1, 2, 4)
    model.spare.requires_grad_(False)

    def pair(second):
        return lambda o, y: ((o["y"] - y).square().mean(-1) + o["value"].mean(-1), second(o, y))

    for options in ({}, {"memory": bptt.Checkpoints(2, 2)}, {"strategy": bptt.TruncatedBPTT(2, 4)}):
        for merged in (True, False):
            bad = pair(lambda o, y: o["value"].square().mean(-1))
            refused(lambda b=bad, m=merged, k=options: run(model, b, zeros, m, **k), "sum", "detach")
    for second in (
        lambda o, y: o["y"],
        lambda o, y: o["value"].mean(-1).detach(),
        lambda o, y: {"value": o["value"].mean(-1)},
        lambda o, y: o["value"].mean(-1, keepdim=True),
        lambda o, y: o["y"][..., 0],
    ):
        run(model, pair(second), zeros)
    bptt.evaluate(model, pair(lambda o, y: o["value"].square().mean(-1)), [(X, Y)], zeros)


def enclosing(p):
    return lambda: p


@pytest.mark.parametrize(
    "hold",
    [enclosing, lambda p: lambda p=p: p, lambda p: functools.partial(print, p)],
    ids=["closure", "default", "partial"],
)
def test_what_many_functions_hold_is_all_in_sight(hold):
    """On the way tuples are made and given up, and the next one lies where the last one lay."""
    tensors = [nn.Parameter(torch.zeros(1)) for _ in range(30)]
    found = list(in_sight([hold(p) for p in tensors], {}))
    assert [id(p) for p in found] == [id(p) for p in tensors]
