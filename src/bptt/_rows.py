"""A state as one real vector per batch row, and vjps of many such vectors at once."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _boundary, _tree
from bptt._errors import named
from bptt._recurrence import default_batch_dim
from bptt._tree import Tree


class Rows:
    """A state as (rows, size): each batch row's floating leaves in one real vector; a complex number is two."""

    def __init__(self, carried: Tree, batch_dim: Any, seen: set[int] | None = None) -> None:
        pairs = zip(_tree.leaves(carried), _tree.by_leaf(batch_dim, carried), strict=True)
        kept = [
            (i, x, d) for i, (x, d) in enumerate(pairs) if _tree.carries_cotangent(x) and (seen is None or i in seen)
        ]
        if any(d is None for _, _, d in kept):  # a leaf that all rows share ties them together
            kept = [(i, x, None) for i, x, _ in kept]
        self.which = [i for i, _, _ in kept]
        self.leaves = [(x.shape, x.dtype, None if d is None else d % x.dim()) for _, x, d in kept]
        self.sizes: list[int] = []
        self.count = 1
        self.dtype, self.device = torch.float32, None
        for _, x, d in kept:
            self.count = 1 if d is None else x.shape[d]
            self.sizes.append(x.numel() // max(1, self.count) * (2 if x.is_complex() else 1))
            self.dtype = torch.promote_types(self.dtype, x.dtype.to_real())
            self.device = x.device if self.device is None else self.device
        self.size = sum(self.sizes)

    @classmethod
    def of(cls, model: Any, batch_dim: Any, carried: Tree, purpose: str, seen: set[int] | None = None) -> "Rows":
        """The rows of a run's state, separate if the axis of the batch is known; of the leaves `seen`, or of all."""
        axis = default_batch_dim(model)
        unbatched = axis is not None and _tree.leaves(carried)[0].dim() < 2 + axis
        dims = None if unbatched else batch_dim
        _boundary.batch_dim(dims, carried, None)
        rows = cls(carried, dims, seen)
        if not rows.size:
            raise ValueError(
                f"the state of {named(model)} has no floating leaf, so no credit goes back through it: "
                f"there is nothing to {purpose}."
            )
        return rows

    def gather(self, values: Sequence[Tensor | None], n: int) -> Tensor:
        """(n, rows, size) from the n cotangents (n, *leaf) of each floating leaf; None is zero."""
        parts: list[Tensor] = []
        for value, (_, _, dim), size in zip(values, self.leaves, self.sizes, strict=True):
            if value is None:
                parts.append(torch.zeros(n, self.count, size, dtype=self.dtype, device=self.device))
                continue
            value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
            value = value if dim is None else value.movedim(1 + dim, 1)
            parts.append(value.reshape(n, self.count, size).to(self.device, self.dtype))
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]

    def scatter(self, vectors: Tensor) -> list[Tensor]:
        """The inverse of `gather`."""
        found: list[Tensor] = []
        for part, (sizes, dtype, dim) in zip(vectors.split(self.sizes, 2), self.leaves, strict=True):
            n, pair = len(part), [2] if dtype.is_complex else []
            if dim is None:
                value = part.reshape(n, *sizes, *pair)
            else:
                rest = [*sizes[:dim], *sizes[dim + 1 :]]
                value = part.reshape(n, self.count, *rest, *pair).movedim(1, 1 + dim)
            value = value.to(dtype.to_real())
            found.append(torch.view_as_complex(value.contiguous()) if pair else value)
        return found


class Vjps:
    """Many vjps of one graph, which is kept: one vectorised call if every operator allows it, else a loop."""

    def __init__(self) -> None:
        self.together = True

    def __call__(self, roots: list[Tensor], cotangents: list[Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
        """(n, *input) for each input, from cotangents (n, *root); None where nothing reaches an input."""
        given = [(root, c) for root, c in zip(roots, cotangents, strict=True) if root.requires_grad]
        if not given or not inputs:
            return [None] * len(inputs)
        n = len(given[0][1])
        kept = [root for root, _ in given]
        if self.together:
            try:
                return _batched(kept, [c for _, c in given], inputs)
            except RuntimeError:  # an operator without a rule for batches of cotangents; a real error is raised again
                self.together = False
        each = [
            torch.autograd.grad(kept, inputs, [c[i] for _, c in given], retain_graph=True, allow_unused=True)
            for i in range(n)
        ]
        return [
            None if column[0] is None else torch.stack([c.to_dense() for c in column])
            for column in zip(*each, strict=True)
        ]


def _batched(roots: list[Tensor], cotangents: list[Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
    """The same by torch.vmap, which has rules for more operators than is_grads_batched=True."""
    reached: list[bool] = []

    def vjp(*vectors: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(roots, inputs, vectors, retain_graph=True, allow_unused=True)
        reached[:] = [x is not None for x in found]
        return [x for x in found if x is not None]

    found = iter(torch.vmap(vjp)(*cotangents))
    return [next(found) if there else None for there in reached]


@contextmanager
def batchable(model: Callable[..., Any]) -> Iterator[None]:
    """Run torch.nn's layers without cuDNN and oneDNN: these take no batch of cotangents, cuDNN none in eval mode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap's own fallback to a loop
        if not (isinstance(model, nn.Module) and any(isinstance(m, nn.RNNBase) for m in model.modules())):
            yield
            return
        warnings.filterwarnings("ignore", message=".*TF32")  # what setting the flags says of other hardware
        with torch.backends.cudnn.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
            yield


def numbers(leaf: Tensor) -> int:
    """The real numbers of a parameter."""
    return leaf.numel() * (2 if leaf.is_complex() else 1)


def real(values: Tensor, n: int) -> Tensor:
    """(n, *parameter) as (n, numbers)."""
    values = values.to_dense() if values.layout is not torch.strided else values
    return (torch.view_as_real(values.resolve_conj()) if values.is_complex() else values).reshape(n, -1)


def shaped(values: Tensor, leaf: Tensor) -> Tensor:
    """(numbers,) as a gradient of the parameter."""
    if leaf.is_complex():
        return torch.view_as_complex(values.reshape(*leaf.shape, 2)).to(leaf.dtype)
    return values.reshape(leaf.shape).to(leaf.dtype)
