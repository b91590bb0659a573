"""A rank in step with the others: how it calls the model, and what it does once its stream has ended."""

from dataclasses import replace
from typing import Any, NamedTuple
from zlib import crc32

import torch

from bptt import _torch, _tree
from bptt._masks import Sheltered
from bptt._ranks import Ranks
from bptt._segment import Segment, Span
from bptt.strategies.windows import Window


def calls(ranks: Ranks, span: Span, memory: Any) -> int:
    """How the model is called in a window, for `Entry`: a digest where calls communicate, else 0, as for one call."""
    if not ranks.talks:
        return 0
    p, window = span.problem, span.window
    cuts = Segment(span, window.start, window.stop).calls
    unfinished = isinstance(span.time, Sheltered) and span.time.unfinished
    before = span.time.resets(window.start - window.burn_in, window.start) if window.burn_in else []
    plain = len(cuts) == 1 and memory is None and not unfinished and not window.burn_in
    if plain and getattr(p.model, _torch.WRAPPED, p.model) in ranks.wrappers:
        return 0
    return 1 + crc32(repr((cuts, memory, unfinished, window.burn_in, before)).encode())


class Idle(NamedTuple):
    """What a rank has left to do once its stream has ended: a step that was run, and what windows of no steps give.

    span, outcome: of such a window.
    """

    step: Span
    span: Span
    outcome: Any

    @classmethod
    def after(cls, span: Span, outcome: Any) -> "Idle":
        """That after a window and its outcome."""
        a, end = span.window.start, span.window.stop
        initial = None if span.initial is None else replace(span.initial, value=span.initial.leaves)
        step = replace(span, time=span.time.apart(), window=Window(a, a, a + 1, a + 1), initial=initial)
        zero = torch.zeros_like(outcome.loss)
        nothing = replace(outcome, loss=zero, valid=zero, aux=None, cotangent=[], forward_steps=0, memory_bytes=0.0)
        return cls(step, replace(span, window=Window(end, end, end, end)), nothing)

    def run(self) -> None:
        """Take part in a wrapper's averaging with zeros, by a backward pass of one step that leads to none."""
        segment = Segment(self.step, self.step.window.start, self.step.window.stop)
        with torch.enable_grad():
            data = self.step.time.read(segment.start, segment.stop)
            outputs, end, *_ = segment.unfold(_tree.tracked(self.step.begin), data)
        roots = [leaf for leaf in (*_tree.leaves(outputs), *_tree.leaves(end)) if leaf.requires_grad]
        torch.autograd.backward(roots, [torch.zeros_like(leaf) for leaf in roots])
