"""Keeps what a mask leaves out of the gradient: 0 · NaN is NaN, so a weight of zero alone isn't enough.

Two things stand between an excluded loss and the parameters. Between recurrence and loss, `blocked` lets no cotangent
of an excluded entry through. Within the recurrence, a row's *dead* steps, those that reach no counted loss of the
window before the row's next reset or the window's end, are recorded on the inputs of a live step, from the initial
state where one is known (`Sheltered`). The states that a run continues from are those of the data as they are.
"""

from bisect import bisect_left
from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from bptt import _tree
from bptt._stream import Data, Timeline
from bptt._tree import Tree, shape
from bptt.strategies.windows import Window


def blocked(tree: Tree, mask: Tensor, time_dim: int) -> Tree:
    """The same values, without a graph where `mask` (T, B) or (T,) is 0; there NaN and huge numbers become 0.

    Leaves that don't begin with the axes of `mask`, and integer ones, stay as they are.
    """
    counted = mask.bool()

    def block(leaf: Tensor) -> Tensor:
        return _replaced(leaf, counted, time_dim, _tame) if _tree.carries_cotangent(leaf) else leaf

    return _tree.map_leaves(block, tree)


def _tame(leaf: Tensor, _: Tensor) -> Tensor:
    """The entries that a loss can square without leaving the range of their dtype, with 0 in place of all others."""
    return torch.where(leaf.abs() < torch.finfo(leaf.dtype).max ** 0.25, leaf, torch.zeros_like(leaf))


def _donor(leaf: Tensor, alive: Tensor) -> Tensor:
    """The first live entry, zeros if there is none; it broadcasts over the axes of `alive`, which lead."""
    first = int(alive.flatten().to(torch.uint8).argmax())
    entry = leaf[divmod(first, alive.shape[1]) if alive.dim() == 2 else first]
    return entry if alive.any() else torch.zeros_like(entry)


def _replaced(leaf: Tensor, kept: Tensor, time_dim: int, other: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`leaf` where `kept` is true, elsewhere what `other` makes of its detached values."""
    turned = leaf.transpose(0, 1) if time_dim == 1 and kept.dim() == 2 <= leaf.dim() else leaf
    if turned.shape[: kept.dim()] != kept.shape:
        return leaf
    where = kept.to(leaf.device).reshape(*kept.shape, *[1] * (leaf.dim() - kept.dim()))
    found = torch.where(where, turned, other(turned.detach(), kept))
    return found if turned is leaf else found.transpose(0, 1)


def dead_steps(mask: Tensor, is_start: Tensor | None, first: int) -> Tensor:
    """Which steps reach no counted loss of the steps from `first` on before their row's next reset, or the end.

    mask, is_start: bool (T, B) or (T,). Returns bool, (T, B) where one of them is.

    >>> mask = torch.tensor([True, False, False, True, False])
    >>> dead_steps(mask, torch.tensor([False, False, False, True, False]), 0)
    tensor([False,  True,  True, False,  True])
    """
    counted = mask.clone()
    counted[:first] = False
    steps = len(mask)
    at = torch.arange(steps).reshape(-1, *[1] * (mask.dim() - 1))
    next_counted = torch.where(counted, at, steps).flip(0).cummin(0).values.flip(0)
    if is_start is None:
        return next_counted == steps
    if is_start.dim() < mask.dim():
        is_start = is_start[:, None]
    elif is_start.dim() > mask.dim():
        next_counted, at = next_counted[:, None], at[:, None]
    starts = torch.where(is_start, at, steps).flip(0).cummin(0).values.flip(0)
    next_start = torch.cat([starts[1:], torch.full_like(starts[:1], steps)])
    return (next_counted >= next_start) | (next_counted == steps)


class Sheltered:
    """A window of a timeline whose dead steps can do no harm; it stands in for the timeline inside the window.

    whole: the timeline itself. unfinished: whether a row is dead where the next window starts or this one ends, so that
    its state there must come from the data as they are.
    """

    def __init__(self, whole: Timeline, window: Window, dead: Tensor, starts: Tensor | None, resets: bool) -> None:
        self.whole, self.time_dim = whole, whole.time_dim
        self._start, self._dead = window.start, dead
        ends = [window.stop - 1, *([window.keep - 1] if window.keep > window.start else [])]
        self.unfinished = any(bool(dead[t - window.start].any()) for t in ends)
        if resets:
            dies = dead.clone()
            dies[1:] &= ~dead[:-1]
            starts = dies if starts is None else dies | (starts if starts.dim() == dies.dim() else starts[:, None])
        self._starts = starts
        rows = torch.zeros(0, 1) if starts is None else starts.reshape(len(starts), -1)
        self._resets = (window.start + rows.any(1).nonzero().flatten()).tolist()

    def read(self, a: int, b: int) -> Data:
        """Steps [a, b) of the window, as `Timeline.read` gives them, except for the dead ones."""
        data = self.whole.read(a, b)
        inside = slice(a - self._start, b - self._start)
        device = _tree.leaves(data.inputs)[0].device
        starts = None if self._starts is None else self._starts[inside].to(device)
        alive = ~self._dead[inside]
        if alive.all():
            return data._replace(is_start=starts)
        inputs = _tree.map_leaves(lambda leaf: _replaced(leaf, alive, self.time_dim, _donor), data.inputs)
        return data._replace(inputs=inputs, is_start=starts)

    def resets(self, a: int, b: int) -> list[int]:
        """The steps in [a, b) at which some row is reset."""
        return self._resets[bisect_left(self._resets, a) : bisect_left(self._resets, b)]

    def masked(self, a: int, b: int) -> bool:
        """Whether a mask leaves out any loss of the steps [a, b)."""
        return self.whole.masked(a, b)

    def apart(self) -> "Sheltered":
        """As `Timeline.apart`."""
        other = copy(self)
        other.whole = self.whole.apart()
        return other

    @property
    def asking(self) -> bool:
        """As `Timeline.asking`."""
        return self.whole.asking

    def inputs_at(self, step: int) -> Tree:
        """As `Timeline.inputs_at`."""
        return self.whole.inputs_at(step)

    def collect(self, a: int, b: int, data: Data) -> None:
        """As `Timeline.collect`."""
        self.whole.collect(a, b, data)


def sheltered(time: Timeline, window: Window, resets: Callable[[Tensor], bool]) -> Timeline | Sheltered:
    """The timeline as a window sees it: the timeline itself, unless a mask gives a row dead steps.

    resets: whether single dead rows can be reset, since an initial state and the rows' axis are known.
    """
    starts, mask = time.rows(window.start, window.stop)
    if mask is None:
        return time
    starts = None if starts is None else starts.cpu()
    dead = dead_steps(mask.cpu().bool(), starts, window.first - window.start)
    return Sheltered(time, window, dead, starts, resets(dead)) if dead.any() else time


def check_fits(mask: Tensor, values: Tensor) -> Tensor:
    """Raise unless the mask's axes are the first ones of the losses."""
    if values.shape[: mask.dim()] != mask.shape:
        raise ValueError(
            f"mask covers {shape(mask)}, but the losses have shape {shape(values)}: return losses by step and row, "
            f"(T, B, ...)."
        )
    return mask
