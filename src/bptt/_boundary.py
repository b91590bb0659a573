"""Gates on the state between two steps: what multiplies or bounds the second term of equation (1).

c_t = ∂l_t/∂s_t + w_{t+1} · c_{t+1} · ∂s_{t+1}/∂s_t                                   (1)
"""

from typing import Any

import torch
from torch import Tensor

from bptt import _tree
from bptt._tree import Tree, check_tensors, shape


class _Scale(torch.autograd.Function):
    """The identity, whose vjp multiplies by w: the w_{t+1} of (1)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.w = inputs[1] if not isinstance(inputs[1], Tensor) else None
        ctx.save_for_backward(*(w for w in inputs[1:] if isinstance(w, Tensor)))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.w is not None:
            return cotangent * ctx.w, None
        (w,) = ctx.saved_tensors
        return torch.where(w == 0, torch.zeros_like(cotangent), cotangent * w), None  # 0 cuts an infinite one too


class _Clip(torch.autograd.Function):
    """The identity, whose vjp scales each row to a norm of at most `bound` over all leaves together."""

    @staticmethod
    def forward(ctx: Any, bound: Any, dims: list[int], *xs: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.bound, ctx.dims = bound, dims
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        squares = [
            c.abs().square().movedim(d, 0).reshape(c.shape[d], -1).sum(1)
            for c, d in zip(cotangents, ctx.dims, strict=True)
        ]
        norms = torch.stack(squares).sum(0).sqrt()
        factor = torch.where(norms > ctx.bound, ctx.bound / norms, torch.ones_like(norms))
        return None, None, *(c * _tree.along(factor, d, c) for c, d in zip(cotangents, ctx.dims, strict=True))


def scale_gradient(state: Tree, w: float | Tensor, state_batch_dim: Any = None) -> Tree:
    """The gate of equation (1) alone, for a hand-written loop: the same state, whose cotangent is multiplied by w.

        forward: s -> s        backward: c -> w · c                                       (1)

    state: pytree of tensors; integer and boolean leaves pass through.
    w: a number (0 detaches), a 0-d tensor, or a tensor (B,) of one weight per row.
    state_batch_dim: the axis of the rows, an int or a pytree of ints, None for a leaf without rows, which a weight by
        row leaves as it is; needed if w has rows.

    Returns the state in the same structure. Raises ValueError for rows without `state_batch_dim`.
    Cost: one multiplication per leaf in the backward pass.

    >>> import bptt, torch
    >>> s = torch.ones(2, requires_grad=True)
    >>> bptt.scale_gradient(s, 1.25).sum().backward(); s.grad
    tensor([1.2500, 1.2500])

    Source: Tallec & Ollivier 2017, proposition 1, https://arxiv.org/abs/1705.08209: with w = 0 at a cut of
    probability p and 1/(1 - p) elsewhere the gradient is unbiased.
    """
    return gate(state, w, rows_weight(state, w, state_batch_dim))


def gate(carried: Tree, w: float | Tensor, batch_dim: Any) -> Tree:
    """`scale_gradient` of a checked state."""
    values, structure = _tree.flatten(carried)
    if not isinstance(w, Tensor) and w == 0:
        return _tree.detach(carried)
    gated = [
        _Scale.apply(v, _tree.along(w, dim, v).to(v.device) if isinstance(w, Tensor) else w)
        if _tree.carries_cotangent(v) and (dim is not None or not isinstance(w, Tensor) or w.dim() == 0)
        else v
        for v, dim in zip(values, _tree.by_leaf(batch_dim, carried), strict=True)
    ]
    return _tree.unflatten(gated, structure)


def clip(carried: Tree, bound: Any, batch_dim: Any) -> Tree:
    """The same state, each row of its cotangent scaled to a norm of at most `bound`, but for leaves without rows."""
    values, structure = _tree.flatten(carried)
    dims = _tree.by_leaf(batch_dim, carried)
    floating = [i for i, value in enumerate(values) if _tree.carries_cotangent(value) and dims[i] is not None]
    if floating:
        clipped = _Clip.apply(bound, [dims[i] for i in floating], *(values[i] for i in floating))
        values = list(values)
        for i, value in zip(floating, clipped, strict=True):
            values[i] = value
    return _tree.unflatten(values, structure)


def batch_dim(value: Any, tree: Any, bound: float | None) -> None:
    """Raise unless `state_batch_dim` is given where it is needed, and is an axis that every leaf has."""
    if value is None:
        if bound is not None:
            raise ValueError(
                "clip_cotangent= bounds each batch row: say which axis of the state holds the rows, state_batch_dim=."
            )
        return
    if bad := [dim for dim in _tree.axes(value) if isinstance(dim, bool) or not isinstance(dim, int | None)]:
        raise TypeError(f"state_batch_dim={bad[0]!r}: an axis is an int, or None for a leaf without rows.")
    if tree is None or callable(tree):
        return
    dims = _tree.by_leaf(value, tree)
    paths = _tree.named_leaves(tree, "state")
    if len(dims) != len(paths):
        raise ValueError(
            f"state_batch_dim={value!r} must be an int, or ints (None for a leaf without rows) in the structure of the "
            f"state ({len(paths)} leaves)."
        )
    with_rows = [(dim, path, leaf) for dim, (path, leaf) in zip(dims, paths, strict=True) if dim is not None]
    for dim, path, leaf in with_rows:
        if not -leaf.dim() <= dim < leaf.dim():
            raise ValueError(f"state_batch_dim={dim!r}: {path} of shape {shape(leaf)} has no such axis.")
    if bound is not None and not any(_tree.carries_cotangent(leaf) for _, _, leaf in with_rows):
        raise ValueError("clip_cotangent= bounds each batch row, but no floating leaf of the state has rows.")
    sizes = {leaf.shape[dim] for dim, _, leaf in with_rows}
    if len(sizes) > 1:
        raise ValueError(
            f"state_batch_dim={value!r}: the leaves of the state have different batch sizes there, {sorted(sizes)}."
        )


def rows_of_state(carried: Tree, rows: Tensor, dims: Any) -> None:
    """Raise unless the rows (B,) fit the state's batch axis."""
    if rows.dim() == 0:
        return
    if dims is None:
        raise ValueError("is_start resets single rows: say which axis of the state holds the batch, state_batch_dim=.")
    axes = _tree.by_leaf(dims, carried)
    if all(dim is None for dim in axes):
        raise ValueError(
            f"is_start has {rows.shape[0]} rows, but no leaf of the state has any: state_batch_dim={dims!r}."
        )
    for (path, leaf), dim in zip(_tree.named_leaves(carried, "state"), axes, strict=True):
        if dim is not None and (leaf.dim() <= dim or leaf.shape[dim] != rows.shape[0]):
            raise ValueError(
                f"is_start has {rows.shape[0]} rows, but {path} of shape {shape(leaf)} doesn't have that many at axis "
                f"state_batch_dim={dim}."
            )


def has_rows(carried: Tree, dims: Any, rows: int) -> bool:
    """Whether the axes of the batch are known, and a known state has that many rows there."""
    if dims is None or carried is None:
        return dims is not None
    pairs = zip(_tree.leaves(carried), _tree.by_leaf(dims, carried), strict=True)
    return all(dim is None or (leaf.dim() > dim and leaf.shape[dim] == rows) for leaf, dim in pairs)


def row_count(carried: Tree, dims: Any, layer: bool, inputs: Tree) -> int:
    """The rows of a state, 1 for a layer's unbatched inputs (T, I)."""
    if dims is None:
        raise ValueError(
            "ARTBP(per_row=True) cuts each batch row on its own: say which axis of the state holds them, "
            "state_batch_dim=."
        )
    if layer and _tree.leaves(inputs)[0].dim() == 2:
        return 1
    batch_dim(dims, carried, None)
    pairs = zip(_tree.leaves(carried), _tree.by_leaf(dims, carried), strict=True)
    counts = [leaf.shape[dim] for leaf, dim in pairs if dim is not None]
    if not counts:
        raise ValueError("ARTBP(per_row=True) cuts each batch row on its own, but no leaf of the state has rows.")
    return counts[0]


def rows_weight(tree: Tree, w: Any, dims: Any) -> Any:
    """`state_batch_dim` of a weight by row."""
    check_tensors(tree, "state")
    if isinstance(w, Tensor) and w.dim() > 0:
        if dims is None or w.dim() != 1:
            raise ValueError(
                f"w of shape {shape(w)}: a weight by row is (B,) and needs state_batch_dim=, the axis of the rows."
            )
        rows_of_state(tree, w, dims)
    return dims


def raised(carried: Tree, given: Tree) -> Tree:
    """A state that autocast has lowered, in the dtypes in which it was given, or float32 where it was None."""
    values, structure = _tree.flatten(carried)
    if not any(_lowered(value) for value in values):
        return carried
    dtypes = [torch.float32] * len(values) if given is None else [leaf.dtype for leaf in _tree.leaves(given)]
    raised = [v.to(dtype) if _lowered(v) else v for v, dtype in zip(values, dtypes, strict=True)]
    return _tree.unflatten(raised, structure)


def check_unchanged(before: list[int], carried: Tree) -> None:
    """Raise if somebody has written to the state that a run carries between two updates."""
    if before == (now := _tree.versions(carried)):
        return
    paths = [path for path, _ in _tree.named_leaves(carried, "state")]
    path = next(path for path, a, b in zip(paths, before, now, strict=True) if a != b)
    raise ValueError(
        f"{path}, from which the run continues, was changed in place between two updates, through a tensor that shares "
        f"its memory (the state= that was passed, inputs, or aux): change a clone of that."
    )


def _lowered(leaf: Tensor) -> bool:
    """Whether it is in the dtype that autocast is computing in."""
    kind = leaf.device.type
    if leaf.dtype not in (torch.bfloat16, torch.float16) or not torch.amp.is_autocast_available(kind):
        return False
    return torch.is_autocast_enabled(kind) and leaf.dtype == torch.get_autocast_dtype(kind)
