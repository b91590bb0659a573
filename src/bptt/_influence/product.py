"""J as a random product of two vectors whose mean it is: UORO."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bptt import _tree
from bptt._influence.base import Influence, Source
from bptt._rewind import Rewind
from bptt._rows import batchable, numbers, real, shaped
from bptt._segment import Segment, Span
from bptt._snapshot import Snapshot
from bptt._tree import Tree


class Product(Influence):
    """J ≈ s̃ θ̃ of equation (2) of `UORO`: s̃ (rows, size), θ̃ (numbers,) for each parameter.

    The vjp of a window also gives ν D, and ν · (D s̃) must equal (ν D) · s̃: if the forward-mode derivative doesn't
    exist, or is silently lost on the way, a vjp of the vjp is taken from then on.
    """

    def __init__(self, source: Source, epsilon: float, generator: torch.Generator | None) -> None:
        super().__init__(source)
        self._epsilon, self._generator = epsilon, generator
        self.of_state: Tensor | None = None
        self.of_theta: list[Tensor] = []
        self._forward_mode = True

    def _include(self, leaf: Tensor) -> None:
        assert self.rows is not None
        self.of_theta.append(torch.zeros(numbers(leaf), dtype=self.rows.dtype, device=leaf.device))

    def signs(self, *shape: int) -> Tensor:
        """ν, made of independent random signs."""
        device = "cpu" if self._generator is None else self._generator.device
        return torch.randint(2, shape, generator=self._generator, device=device) * 2 - 1

    def absorb(self, span: Span, length: int | None, noise: Snapshot, end: Tree) -> None:
        """Equation (2) over a window: signs are drawn from the run's noise, and the window runs on its own noise."""
        assert self.rows is not None
        signs = self.signs(self.rows.count, self.rows.size).to(self.rows.device, self.rows.dtype)
        old = torch.zeros_like(signs) if self.of_state is None else self.of_state
        steps = span.window.stop - span.window.start
        length, span = min(length or steps, steps), self.span(span)
        with batchable(self.problem.model):
            with noise.installed(), torch.enable_grad():
                pulled, new = self._pulled_back(span, length, signs)
            with noise.installed():
                moved = self._pushed(span, length, old)
            if self._forward_mode and not _agree(signs, moved, pulled, old):
                self._forward_mode = False
                with noise.installed():
                    moved = self._pushed(span, length, old)
        torch.clear_autocast_cache()
        if self.masked:
            moved = torch.where(moved.isfinite(), moved, 0)  # rows that no longer count
        self._mix(moved, signs, new)

    def _pulled_back(self, span: Span, length: int, signs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """ν D, (rows, size), and ν I for each parameter, by one vjp of the window."""
        vectors, sums = signs[None], list[Tensor | None]()
        segments = span.segments(length, replays=True)
        for segment, carried in Rewind(segments, math.isqrt(len(segments)) + 1, span.begin):
            begin, end, _, _ = self.unfolded(segment, carried)
            vectors, found = self.pulled(segment, begin, end, vectors)
            sums += [None] * (len(found) - len(sums))
            sums = _tree.added(sums, found)
        flat = [
            torch.zeros_like(old) if x is None else real(x, 1)[0].to(old)
            for x, old in zip(sums, self.of_theta, strict=True)
        ]
        return vectors[0], flat

    def _pushed(self, span: Span, length: int, old: Tensor) -> Tensor:
        """D s̃, (rows, size), by a derivative in forward mode, else by a vjp of a vjp, segment by segment."""
        if span.window.start == 0:
            return torch.zeros_like(old)
        tangent, carried = old, span.begin
        for segment in span.segments(length, replays=False):
            if self._forward_mode:
                try:
                    tangent, after = self._by_forward_mode(segment, carried, tangent)
                except (NotImplementedError, RuntimeError):  # an operator without one; a real error is raised again
                    self._forward_mode = False
                    return self._pushed(span, length, old)
            else:
                tangent, after = self._by_two_vjps(segment, carried, tangent)
            carried = after
        return tangent

    def _by_forward_mode(self, segment: Segment, carried: Tree, tangent: Tensor) -> tuple[Tensor, Tree]:
        """D s̃ of a segment and the state after it, without a graph."""
        assert self.rows is not None
        data = segment.time.read(segment.start, segment.stop)
        with warnings.catch_warnings(), torch.no_grad(), forward_ad.dual_level():
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")  # its own, at the first dual
            values, structure = _tree.flatten(carried)
            values = list(values)
            for i, part in zip(self.rows.which, self.rows.scatter(tangent[None]), strict=True):
                values[i] = forward_ad.make_dual(values[i].detach(), part[0].contiguous())
            done = segment.unfold(_tree.unflatten(values, structure), data)
            ends = _tree.leaves(done.end)
            found = [forward_ad.unpack_dual(ends[i]).tangent for i in self.rows.which]
            moved = self.rows.gather([None if x is None else x[None] for x in found], 1)[0]
            after = _tree.map_leaves(lambda leaf: forward_ad.unpack_dual(leaf).primal.detach().clone(), done.after)
        return moved.clone(), after

    def _by_two_vjps(self, segment: Segment, carried: Tree, tangent: Tensor) -> tuple[Tensor, Tree]:
        """The same: u D is linear in u, and its derivative along s̃ is what is wanted."""
        assert self.rows is not None
        with torch.enable_grad():
            begin, end, after, _ = self.unfolded(segment, carried)
            ends, firsts = _tree.leaves(end), _tree.leaves(begin)
            roots = [ends[i] for i in self.rows.which]
            probes = [torch.zeros_like(root, requires_grad=True) for root in roots]
            pairs = [(root, probe) for root, probe in zip(roots, probes, strict=True) if root.requires_grad]
            if not pairs:
                return torch.zeros_like(tangent), after
            own = [firsts[i] for i in self.rows.which]
            outer = torch.autograd.grad(
                [root for root, _ in pairs], own, [probe for _, probe in pairs], create_graph=True, allow_unused=True
            )
            along = [part[0] for part in self.rows.scatter(tangent[None])]
            linear = [(u, v) for u, v in zip(outer, along, strict=True) if u is not None and u.requires_grad]
            found: Sequence[Tensor | None] = [None] * len(probes)
            if linear:
                found = torch.autograd.grad([u for u, _ in linear], probes, [v for _, v in linear], allow_unused=True)
        return self.rows.gather([None if x is None else x[None] for x in found], 1)[0], after

    def _mix(self, moved: Tensor, signs: Tensor, new: list[Tensor]) -> None:
        """Equations (2) and (3) of `UORO`."""
        tiny = self._epsilon
        old, fresh = _norm(self.of_theta), _norm(new)
        rho0 = ((old + tiny) / (moved.norm() + tiny)).sqrt()
        rho1 = ((fresh + tiny) / (signs.norm() + tiny)).sqrt()
        self.of_state = rho0 * moved + rho1 * signs
        self.of_theta = [a / rho0.to(a.device) + b / rho1.to(a.device) for a, b in zip(self.of_theta, new, strict=True)]

    def pull(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """(c · s̃) θ̃, without the rows whose cotangent is zero."""
        assert self.rows is not None
        assert self.of_state is not None
        c = self.rows.gather([None if x is None else x[None] for x in cotangents], 1)[0]
        along = torch.where(c == 0, 0, c * self.of_state).sum()
        return [
            shaped(along.to(part.device) * part, leaf) for part, leaf in zip(self.of_theta, self.theta, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """s̃ and θ̃, as they were and as they will be."""
        state = 0 if self.rows is None else self.rows.count * self.rows.size * self.rows.dtype.itemsize
        return 2 * (state + sum(part.nbytes for part in self.of_theta))

    def parts(self) -> dict[str, Any]:
        """s̃, and θ̃ by parameter."""
        pairs = zip(self.theta, self.of_theta, strict=True)
        return {
            "state": None if self.of_state is None else self.of_state.clone(),
            "theta": {self.name_of(leaf): part.clone() for leaf, part in pairs},
        }

    def take(self, parts: dict[str, Any]) -> None:
        """The inverse of `parts`."""
        assert self.rows is not None
        state, rows = parts["state"], self.rows
        if state is not None:
            if tuple(state.shape) != (rows.count, rows.size):
                raise ValueError(
                    f"load_state_dict: the saved run carries an influence on a state of {tuple(state.shape)} (rows, "
                    f"numbers), this one has {(rows.count, rows.size)}: make model and batch rows those of the saved "
                    f"run."
                )
            state = state.to(rows.device, rows.dtype, copy=True)
        self.of_state = state
        pairs = [self.load_leaf(name, saved, ()) for name, saved in parts["theta"].items()]
        self.theta, self.of_theta = [leaf for leaf, _ in pairs], [saved for _, saved in pairs]


def _norm(parts: list[Tensor]) -> Tensor:
    """The norm over all parts together."""
    if not parts:
        return torch.zeros(())
    norms = [part.norm() for part in parts]
    return torch.stack([norm.to(norms[0].device) for norm in norms]).norm()


def _agree(signs: Tensor, moved: Tensor, pulled: Tensor, old: Tensor) -> bool:
    """Whether ν · (D s̃) = (ν D) · s̃ up to rounding; what isn't finite is reported elsewhere."""
    one, other = (signs * moved).sum(), (pulled * old).sum()
    size = (signs.norm() * moved.norm()).maximum(pulled.norm() * old.norm())
    return not bool((one - other).abs() > 1e-3 * size)
