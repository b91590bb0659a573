"""What a run hands out, or was given, and its user changes in place: the run goes on as it would have, or refuses."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import NAMES, make, square
from support.refusals import refused
from support.runs import engine

STRATEGIES = [
    bptt.TruncatedBPTT(3),
    bptt.TruncatedBPTT(3, 6),
    bptt.TruncatedBPTT(1),
    bptt.TruncatedBPTT(1, 4),
    bptt.ARTBP(bptt.ConstantLaw(2)),
    bptt.AdaptiveTruncatedBPTT(0.5, k_min=2, k_max=4),
]


def spoil(tree):
    """Overwrite every leaf, past autograd and its counters too."""
    for leaf in oracle.leaves(tree):
        leaf.zero_()
        leaf.numpy()[...] = 1


def losses(case, strategy, touch, state, **options):
    options.setdefault("generator", torch.Generator().manual_seed(0))
    found = []
    for update in bptt.unroll(engine(case), square, [(case.xs, case.ys)], state, strategy=strategy, **options):
        found.append(update.loss)
        touch(update)
    return found


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory", [None, bptt.Checkpoints(2, 1)], ids=["stored", "replayed"])
def test_update_state_is_the_users_own(strategy, name, memory):
    case = make(name, 9)
    want = losses(case, strategy, lambda update: None, case.random_state(), memory=memory)
    got = losses(case, strategy, lambda update: spoil(update.state), case.random_state(), memory=memory)
    assert got == want


def test_it_is_read_late_and_goes_on():
    case = make("lstm", 9)
    updates = list(bptt.unroll(case.model, square, [(case.xs, case.ys)], strategy=bptt.TruncatedBPTT(3)))
    again = bptt.evaluate(case.model, square, [(case.xs[:3], case.ys[:3])])
    oracle.assert_close(updates[0].state, again.state)
    assert updates[0].state is updates[0].state
    given = case.random_state()
    kept = [leaf.clone() for leaf in given]
    update = bptt.backward(lambda xs, s: (xs[..., :1] + s[0][0], s), lambda o, y: o.mean(2), (case.xs, None), given)
    spoil(update.state)  # the very leaves that were passed, handed on
    oracle.assert_close(given, tuple(kept))


@pytest.mark.parametrize("strategy", [bptt.TruncatedBPTT(2, 6), bptt.TruncatedBPTT(1, 3)], ids=str)
def test_a_state_that_was_passed_and_is_needed_again(strategy):
    """Where a later window starts from it; after that it is the user's."""
    case = make("gru", 9)
    state = case.random_state()
    want = losses(case, strategy, lambda update: None, state)
    refused(lambda: losses(case, strategy, lambda update: state.add_(1), state), "state", "in place")

    def late(update):
        if update.start > 0:
            state.add_(1)

    assert losses(case, strategy, late, case.random_state()) == want


def test_aux_that_shares_memory_with_the_state():
    w = nn.Parameter(torch.ones(3))

    def model(xs, s):
        out = torch.tanh(w * s + xs)
        return out, out[-1:]

    loss = lambda o, y: (o.square().mean(2), o)  # noqa: E731

    def run(touch):
        start = torch.zeros(1, 2, 3)
        for update in bptt.unroll(model, loss, [(torch.ones(4, 2, 3), None)], start, strategy=bptt.TruncatedBPTT(1)):
            touch(update)

    run(lambda update: None)
    refused(lambda: run(lambda update: update.aux.zero_()), "state", "aux")


def test_learned_states_may_be_stepped():
    case = make("gru", 9)
    for options in ({}, {"initial_state": nn.Parameter(case.random_state())}):
        h0 = options.get("initial_state", nn.Parameter(case.random_state()))
        step = torch.optim.SGD([h0, *case.parameters()], 0.1).step
        state = None if options else h0
        assert len(losses(case, bptt.TruncatedBPTT(2, 6), lambda update, step=step: step(), state, **options)) == 5
