"""Keeping a rank in step with the others: how it calls the model, and what it does once its stream has ended."""

from dataclasses import replace
from typing import Any, NamedTuple
from zlib import crc32

import torch

from bptt import _recurrence, _tree
from bptt._masks import Sheltered
from bptt._ranks import Ranks
from bptt._segment import Segment, Span
from bptt._snapshot import isolated
from bptt.strategies.windows import Window


def calls(ranks: Ranks, span: Span, memory: Any) -> int:
    """A digest of how the model is called in a window, for `Entry`, if calls communicate; else 0."""
    if not ranks.talks:
        return 0
    p, window = span.problem, span.window
    cuts = Segment(span, window.start, window.stop).calls
    unfinished = isinstance(span.time, Sheltered) and span.time.unfinished
    begin = window.start - window.burn_in
    resets = span.time.resets(begin, window.stop) if window.burn_in or p.from_none else []
    whole: list[bool] = []
    if p.from_none and resets:  # one that resets single rows takes two calls
        starts = span.time.read(begin, window.stop).is_start
        whole = [] if starts is None else starts.reshape(len(starts), -1).all(1).tolist()
    return crc32(repr((cuts, memory, unfinished, window.burn_in, resets, whole)).encode())


def touch(span: Span) -> None:
    """One call of the model on a window's first step, and a backward pass with zeros: a wrapper averages what there is.

    Noise and buffers are left as they were.
    """
    p, step = span.problem, span.window.start
    with isolated(p.model, span.tensors), torch.enable_grad():
        inputs = span.time.read(step, step + 1).inputs
        outputs, after = _recurrence.called(p.model, inputs, _tree.tracked(span.begin), {}, step, step + 1)
    roots = [leaf for leaf in (*_tree.leaves(outputs), *_tree.leaves(after)) if leaf.requires_grad]
    torch.autograd.backward(roots, [torch.zeros_like(leaf) for leaf in roots])


class Idle(NamedTuple):
    """What a rank needs once its stream has ended: a step to run again, and what windows of no steps give.

    span, outcome: those of such a window.
    """

    step: Span
    span: Span
    outcome: Any

    @classmethod
    def after(cls, span: Span, outcome: Any) -> "Idle":
        """The one after a window and its outcome."""
        a, end = span.window.start, span.window.stop
        step = replace(span, time=span.time.apart(), window=Window(a, a, a + 1, a + 1), initial=None)
        zero = torch.zeros_like(outcome.loss)
        nothing = replace(outcome, loss=zero, valid=zero, aux=None, cotangent=[], forward_steps=0, memory_bytes=0.0)
        return cls(step, replace(span, window=Window(end, end, end, end)), nothing)
