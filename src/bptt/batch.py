"""The batch rows of a state: which axis of each leaf holds them, and errors of rows that don't fit."""

from typing import Any

from torch import Tensor

from bptt import state
from bptt.checks import shape, tensors
from bptt.state import Tree


def batch_dim(value: Any, tree: Any, bound: float | None) -> None:
    """`state_batch_dim` where it is needed, and an axis that every leaf has."""
    if value is None:
        if bound is not None:
            raise ValueError(
                "clip_cotangent= bounds each batch row: say which axis of the state holds the rows, state_batch_dim=."
            )
        return
    if bad := [dim for dim in state.axes(value) if isinstance(dim, bool) or not isinstance(dim, int | None)]:
        raise TypeError(f"state_batch_dim={bad[0]!r}: an axis is an int, or None for a leaf without rows.")
    if tree is None or callable(tree):
        return
    dims = state.by_leaf(value, tree)
    paths = state.named_leaves(tree, "state")
    if len(dims) != len(paths):
        raise ValueError(
            f"state_batch_dim={value!r} must be an int, or ints (None for a leaf without rows) in the structure of the "
            f"state ({len(paths)} leaves)."
        )
    with_rows = [(dim, path, leaf) for dim, (path, leaf) in zip(dims, paths, strict=True) if dim is not None]
    for dim, path, leaf in with_rows:
        if not -leaf.dim() <= dim < leaf.dim():
            raise ValueError(f"state_batch_dim={dim!r}: {path} of shape {shape(leaf)} has no such axis.")
    if bound is not None and not any(state.carries_cotangent(leaf) for _, _, leaf in with_rows):
        raise ValueError("clip_cotangent= bounds each batch row, but no floating leaf of the state has rows.")
    sizes = {leaf.shape[dim] for dim, _, leaf in with_rows}
    if len(sizes) > 1:
        raise ValueError(
            f"state_batch_dim={value!r}: the leaves of the state have different batch sizes there, {sorted(sizes)}."
        )


def rows_of_state(carried: Tree, rows: Tensor, dims: Any) -> None:
    """Rows (B,) that fit the state's batch axis."""
    if rows.dim() == 0:
        return
    if dims is None:
        raise ValueError("is_start resets single rows: say which axis of the state holds the batch, state_batch_dim=.")
    axes = state.by_leaf(dims, carried)
    if all(dim is None for dim in axes):
        raise ValueError(
            f"is_start has {rows.shape[0]} rows, but no leaf of the state has any: state_batch_dim={dims!r}."
        )
    for (path, leaf), dim in zip(state.named_leaves(carried, "state"), axes, strict=True):
        if dim is not None and (leaf.dim() <= dim or leaf.shape[dim] != rows.shape[0]):
            raise ValueError(
                f"is_start has {rows.shape[0]} rows, but {path} of shape {shape(leaf)} has not that many at axis "
                f"state_batch_dim={dim}."
            )


def has_rows(carried: Tree, dims: Any, rows: int) -> bool:
    """Whether the axes of the batch are known, and so many rows lie there in a state that is known."""
    if dims is None or carried is None:
        return dims is not None
    pairs = zip(state.leaves(carried), state.by_leaf(dims, carried), strict=True)
    return all(dim is None or (leaf.dim() > dim and leaf.shape[dim] == rows) for leaf, dim in pairs)


def row_count(carried: Tree, dims: Any, layer: bool, inputs: Tree) -> int:
    """The rows of a state, 1 for a layer's unbatched inputs (T, I)."""
    if dims is None:
        raise ValueError(
            "ARTBP(per_row=True) cuts each batch row on its own: say which axis of the state holds them, "
            "state_batch_dim=."
        )
    if layer and state.leaves(inputs)[0].dim() == 2:
        return 1
    batch_dim(dims, carried, None)
    pairs = zip(state.leaves(carried), state.by_leaf(dims, carried), strict=True)
    counts = [leaf.shape[dim] for leaf, dim in pairs if dim is not None]
    if not counts:
        raise ValueError("ARTBP(per_row=True) cuts each batch row on its own, but no leaf of the state has rows.")
    return counts[0]


def rows_weight(tree: Tree, w: Any, dims: Any) -> Any:
    """`state_batch_dim` of a weight by row."""
    tensors(tree, "state")
    if isinstance(w, Tensor) and w.dim() > 0:
        if dims is None or w.dim() != 1:
            raise ValueError(
                f"w of shape {shape(w)}: a weight by row is (B,) and needs state_batch_dim=, the axis of the rows."
            )
        rows_of_state(tree, w, dims)
    return dims
