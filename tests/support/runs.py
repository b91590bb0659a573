"""Runs of the engine on a case, and the oracle's runs to compare them with."""

import torch

import bptt
from support import oracle
from support.cases import Case, chunks, square
from support.strategies_under_test import windows


def engine(case: Case):
    """The case's recurrence as a user writes it: torch.nn layers as they are, step modules lifted by `scan`."""
    return case.model if case.step is None else bptt.scan(case.step)


def start(case: Case) -> dict:
    """The keywords that a recurrence without default zeros needs."""
    return {} if case.step is None else {"initial_state": case.zeros, "state_batch_dim": case.batch_dim}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def unroll(case: Case, strategy, *, cuts=(), is_start=None, mask=None, state=None, loss=square, **more):
    """`bptt.unroll` under "sum" over the case's data, cut into chunks before each step in `cuts`."""
    keywords = start(case) | {"reduction": "sum", "generator": seed()} | more
    parts = [case.xs, case.ys, is_start, mask]
    while parts[-1] is None and len(parts) > 2:
        parts.pop()
    model = keywords.pop("model", None) or engine(case)
    return bptt.unroll(model, loss, chunks(*parts, cuts=cuts), state, strategy=strategy, **keywords)


def gradient(case: Case, strategy, tensors=None, **more):
    """(gradients of `tensors`, by default the parameters; the updates) of one run without optimiser steps."""
    tensors = case.parameters() if tensors is None else tensors
    oracle.gradients(tensors)
    updates = list(unroll(case, strategy, **more))
    assert updates
    return oracle.gradients(tensors), updates


def expected(case: Case, strategy, updates=(), tensors=None, divisor=1.0, **problem):
    """The oracle's gradient over the windows that the definition gives."""
    tensors = case.parameters() if tensors is None else tensors
    length = len(oracle.leaves(case.xs)[0])
    return oracle.gradient_of(case.problem(**problem), windows(strategy, length, updates), tensors, divisor)


def check(case: Case, strategy, rtol: float = 1e-12, tensors=None, problem=None, **more):
    """The engine's gradient is the oracle's; returns the updates."""
    got, updates = gradient(case, strategy, tensors, **more)
    same = {k: v for k, v in more.items() if k in ("is_start", "mask", "state", "loss")} | (problem or {})
    oracle.assert_close(got, expected(case, strategy, updates, tensors, **same), rtol)
    return updates
