"""Pytrees of tensors, which states, inputs, targets and aux are; the only file that knows how pytrees work here.

A leaf is always a tensor; None is part of the structure. Floating and complex leaves carry cotangents;
integer and boolean leaves pass through every function of this file untouched.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bptt import _torch

Tree = Any
"""A pytree of tensors: a tensor, or tuples, lists, dicts, named tuples and registered types of pytrees."""


def leaves(tree: Tree) -> list[Tensor]:
    """The leaves of `tree`, in pytree order; none for None."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) is tuple and all(isinstance(leaf, Tensor) for leaf in tree):
        return list(tree)  # the commonest states, without the cost of the general case
    return [] if tree is None else [leaf for leaf in pytree.tree_leaves(tree) if leaf is not None]


def flatten(tree: Tree) -> tuple[list[Tensor], Any]:
    """The leaves and the structure; `unflatten(*flatten(tree))` gives `tree` back, including None."""
    if isinstance(tree, Tensor):
        return [tree], LEAF
    if type(tree) is tuple and all(isinstance(leaf, Tensor) for leaf in tree):
        return list(tree), _flat_tuple(len(tree))
    if tree is None:
        return [], None
    values, structure = pytree.tree_flatten(tree)
    holes = tuple(value is None for value in values)
    return ([v for v in values if v is not None], _Holed(structure, holes)) if any(holes) else (values, structure)


LEAF = pytree.tree_structure(0)
"""The structure of a single leaf."""


class _Holed(NamedTuple):
    """A structure of torch's with None in some of its leaves."""

    structure: Any
    holes: tuple[bool, ...]

    def filled(self, values: Sequence[Any]) -> list[Any]:
        rest = iter(values)
        return [None if hole else next(rest) for hole in self.holes]


@cache
def _flat_tuple(length: int) -> Any:
    return pytree.tree_structure((0,) * length)


def unflatten(values: Sequence[Any], structure: Any) -> Tree:
    """The inverse of `flatten`, with any values in the places of the leaves."""
    if structure is LEAF:
        return values[0]
    if structure is not None and structure is _flat_tuple(len(values)):
        return tuple(values)
    if isinstance(structure, _Holed):
        return pytree.tree_unflatten(structure.filled(values), structure.structure)
    return None if structure is None else pytree.tree_unflatten(list(values), structure)


def structure_of(tree: Tree) -> Any:
    """The structure alone; trees with the same containers compare equal."""
    return flatten(tree)[1]


def alike(one: Tree, other: Tree) -> bool:
    """Whether both are tensors, or both tuples of equally many tensors: a fast test for the commonest case."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor)
    return (
        type(one) is tuple is type(other)
        and len(one) == len(other)
        and all(isinstance(leaf, Tensor) for leaf in (*one, *other))
    )


def conform(tree: Tree, structure: Any, sizes: bool = True) -> Tree:
    """`tree` in exactly this structure, with the keys of dicts in its order; ValueError if the structures don't match.

    sizes: whether the sizes that containers of registered types note must be the same too.
    """
    own = structure_of(tree)
    if own is structure or own == structure or (not sizes and _same_but_sizes(own, structure)):
        return tree
    if structure is None or own is None:
        raise ValueError
    values = _up_to(structure, tree)
    if not all(isinstance(value, Tensor) for value in values):
        raise ValueError
    return unflatten(values, structure)


def children(structure: Any) -> list[Any]:
    """The structures that it is made of, which torch 2.8 calls otherwise."""
    return structure.children() if hasattr(structure, "children") else structure.children_specs


def _up_to(structure: Any, tree: Tree) -> list[Any]:
    """What `tree` has in the places of the leaves of `structure`; ValueError if its structure doesn't match."""
    if not isinstance(structure, _Holed):
        return structure.flatten_up_to(_renamed(tree, structure))
    values = structure.structure.flatten_up_to(_renamed(tree, structure.structure))
    if any(hole and value is not None for value, hole in zip(values, structure.holes, strict=True)):
        raise ValueError
    return [value for value, hole in zip(values, structure.holes, strict=True) if not hole]


def _same_but_sizes(one: Any, other: Any) -> bool:
    """Whether two structures are equal, except for whole numbers in the contexts of registered types."""
    if isinstance(one, _Holed) and isinstance(other, _Holed):
        return one.holes == other.holes and _same_but_sizes(one.structure, other.structure)
    if isinstance(one, _Holed) or isinstance(other, _Holed):
        return False
    if one is None or other is None or one.type is not other.type or one.num_children != other.num_children:
        return False
    builtin = one.type in (dict, list, tuple) or one.is_leaf()
    if not (one.context == other.context if builtin else _alike_but_sizes(one.context, other.context)):
        return False
    return all(_same_but_sizes(a, b) for a, b in zip(children(one), children(other), strict=True))


def _alike_but_sizes(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        if all(isinstance(n, int) for n in (*one, *other)):
            return True  # a shape, or what is left of one
        return len(one) == len(other) and all(_alike_but_sizes(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_alike_but_sizes(one[key], other[key]) for key in one)
    return type(one) is type(other) and (isinstance(one, int) or bool(one == other))


def _renamed(tree: Tree, structure: Any) -> Tree:
    """`tree` with named tuples where `structure` has named ones, and plain tuples where it has plain ones."""
    if isinstance(tree, dict) and structure.type is dict and structure.context == list(tree):
        return {key: _renamed(tree[key], part) for key, part in zip(tree, children(structure), strict=True)}
    if not isinstance(tree, tuple | list) or len(tree) != structure.num_children:
        return tree
    parts = [_renamed(part, child) for part, child in zip(tree, children(structure), strict=True)]
    named = pytree.is_namedtuple_class(structure.context)
    if isinstance(tree, list):
        return parts
    return structure.context(*parts) if named else tuple(parts) if structure.type is tuple else tree


def show(structure: Any) -> str:
    """A structure as a line: `(*, {'h': *})`."""
    if isinstance(structure, _Holed):
        return repr(unflatten([_Star()] * structure.holes.count(False), structure))
    return "None" if structure is None else "".join(map(str.strip, pytree.treespec_pprint(structure).splitlines()))


class _Star:
    def __repr__(self) -> str:
        return "*"


def map_leaves(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """`function` of every leaf, in the same structure."""
    values, structure = flatten(tree)
    return unflatten([function(value) for value in values], structure)


def named_leaves(tree: Tree, name: str) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf, the path written as the user would: `state['h'][0]`."""
    if tree is None:
        return []
    try:
        pairs = pytree.tree_flatten_with_path(tree)[0]
        return [(name + pytree.keystr(path), leaf) for path, leaf in pairs if leaf is not None]
    except (ValueError, NotImplementedError):  # a type that was registered without names for its parts
        return [(f"{name}[{i}]", leaf) for i, leaf in enumerate(leaves(tree))]


def fault(tree: Tree, name: str, wrong: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """(path, leaf) of the first leaf that is `wrong`, or None; paths are made only if there is one."""
    if not any(wrong(leaf) for leaf in leaves(tree)):
        return None
    return next(pair for pair in named_leaves(tree, name) if wrong(pair[1]))


def carries_cotangent(leaf: Tensor) -> bool:
    """Whether a leaf is floating or complex, so that (1) of the design acts on it."""
    return leaf.is_floating_point() or leaf.is_complex()


def from_numpy(tree: Tree) -> Tree:
    """The tree with NumPy arrays as tensors, which share memory that is writable and has no negative strides."""
    if isinstance(tree, Tensor) or not any(type(leaf).__module__ == "numpy" for leaf in leaves(tree)):
        return tree

    def converted(leaf: Any) -> Any:
        if type(leaf).__module__ != "numpy":
            return leaf
        try:
            return torch.as_tensor(leaf if leaf.flags.writeable and min(leaf.strides, default=0) >= 0 else leaf.copy())
        except TypeError as error:
            raise TypeError(f"a NumPy array of {leaf.dtype}: pass numbers that torch has a dtype for.") from error

    return map_leaves(converted, tree)


def bare(tree: Tree) -> Tree:
    """The tree with plain tuples in place of named ones, to be saved; ValueError for containers of other types."""
    if isinstance(tree, Tensor) or tree is None:
        return tree
    if isinstance(tree, dict):
        return {key: bare(part) for key, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [bare(part) for part in tree] if isinstance(tree, list) else tuple(bare(part) for part in tree)
    raise ValueError(f"a state with a {type(tree).__name__} in it can't be saved: use tuples, lists and dicts.")


def detach(tree: Tree) -> Tree:
    """The same values without a graph; no copy is made."""
    return map_leaves(torch.Tensor.detach, tree)


def ordinary(tree: Tree) -> Tree:
    """The tree, with copies of leaves made under inference mode, which autograd takes no part in."""
    if torch.is_inference_mode_enabled() or not any(leaf.is_inference() for leaf in leaves(tree)):
        return tree
    return map_leaves(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, tree)


def versions(tree: Tree) -> list[int]:
    """A count of changes in place for each leaf; -1 for leaves that require a gradient, since these are learned.

    A leaf and its detached twins count together.
    """
    return [-1 if leaf.requires_grad or leaf.is_inference() else _torch.version(leaf) for leaf in leaves(tree)]


def compact(tree: Tree) -> Tree:
    """Detached, and copied where a leaf is a view that would keep a larger storage alive."""
    return map_leaves(
        lambda leaf: leaf.detach().clone() if leaf.untyped_storage().nbytes() > leaf.nbytes else leaf.detach(), tree
    )


def tracked(tree: Tree) -> Tree:
    """Fresh leaves with the same values: those that carry cotangents collect them in `.grad`."""
    return map_leaves(lambda leaf: leaf.detach().requires_grad_(carries_cotangent(leaf)), tree)


def cotangents(tree: Tree) -> list[Tensor | None]:
    """What `tracked` leaves have collected, leaf by leaf (None where nothing reached a leaf)."""
    return [leaf.grad for leaf in leaves(tree)]


def added(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Cotangents leaf by leaf, summed; None counts as zero."""
    return [a if b is None else b if a is None else a + b for a, b in zip(some, others, strict=True)]


def nbytes(tree: Tree) -> int:
    """Bytes of the leaves, each by its own elements."""
    return sum(leaf.nbytes for leaf in leaves(tree))


def by_leaf(value: Any, tree: Tree) -> list[Any]:
    """The axis of the rows in each leaf of `tree`; None for leaves without rows: where told, or 0-d under an int.

    value: None, an int, or a pytree of these in the structure of `tree`, the keys of dicts in any order.
    """
    if value is None:
        return [None] * len(leaves(tree))
    if isinstance(value, int):
        return [value if leaf.dim() else None for leaf in leaves(tree)]
    structure = structure_of(tree)
    if structure is not None and structure is not LEAF:
        try:
            return _up_to(structure, value)
        except ValueError:  # counted and told by `arguments.batch_dim`
            pass
    return axes(value)


def axes(value: Any) -> list[Any]:
    """What `state_batch_dim=` holds, None included."""
    return pytree.tree_leaves(value)


def along(rows: Tensor, dim: Any, leaf: Tensor) -> Tensor:
    """`rows` (B,) in a shape that broadcasts over `leaf` with B at axis `dim`; a 0-d `rows` as it is."""
    if rows.dim() == 0:
        return rows
    shape = [1] * leaf.dim()
    shape[dim] = rows.shape[0]
    return rows.reshape(shape)


def weighed(values: Tensor, weights: Tensor) -> Tensor:
    """`values` times weights, bool or numbers, over their first axes; 0 where the weight is 0, whatever the value."""
    weights = weights.reshape(*weights.shape, *[1] * (values.dim() - weights.dim())).to(values.device)
    weighted = values if weights.dtype == torch.bool else values * weights.to(values.dtype)
    return torch.where(weights.bool(), weighted, values.new_zeros(()))


def replace_rows(tree: Tree, other: Tree, rows: Tensor, batch_dim: Any) -> Tree:
    """`other` in the rows where `rows` (B,) is true, `tree` elsewhere; a 0-d `rows` takes all or nothing.

    Only a 0-d `rows` replaces a leaf without rows. Differentiable; no cotangent reaches `tree` through a replaced row.
    """
    values, structure = flatten(tree)
    replaced = [
        value if dim is None and rows.dim() else torch.where(along(rows, dim, value).to(value.device), new, value)
        for value, new, dim in zip(values, leaves(other), by_leaf(batch_dim, tree), strict=True)
    ]
    return unflatten(replaced, structure)


def narrow(tree: Tree, dim: int, start: int, length: int) -> Tree:
    """Steps [start, start + length) of the time axis `dim`, views where that is possible."""
    return map_leaves(lambda leaf: leaf if leaf.shape[dim] == length else leaf.narrow(dim, start, length), tree)


def split(tree: Tree, dim: int, lengths: list[int]) -> list[Tree]:
    """Consecutive stretches of the time axis `dim`."""
    if len(lengths) == 1:
        return [tree]
    values, structure = flatten(tree)
    columns = [value.split(lengths, dim) for value in values]
    return [unflatten(parts, structure) for parts in zip(*columns, strict=True)]


def join(trees: Sequence[Tree], dim: int) -> Tree:
    """Trees of one structure, one after the other along axis `dim` (its last axis for a leaf with fewer)."""
    if len(trees) == 1:
        return trees[0]
    columns = zip(*(leaves(tree) for tree in trees), strict=True)
    joined = [torch.cat(column, min(dim, column[0].dim() - 1)) for column in columns]
    return unflatten(joined, structure_of(trees[0]))


def shape(tensor: Any) -> str:
    """A tensor's shape as a user writes it."""
    return str(tuple(tensor.shape))


def check_tensors(tree: Tree, name: str) -> None:
    """Raise unless it is a pytree whose leaves are tensors."""
    if bad := fault(tree, name, lambda leaf: not isinstance(leaf, Tensor)):
        raise TypeError(
            f"{bad[0]} is a {type(bad[1]).__name__}, not a tensor: use tensors in tuples, lists, dicts, named tuples, "
            f"or types registered with torch.utils._pytree.register_dataclass."
        )


def check_dense(tree: Tree, name: str) -> None:
    """Raise unless it is a pytree whose leaves are tensors that can be cut in time."""
    check_tensors(tree, name)
    if bad := fault(tree, name, lambda leaf: leaf.layout is not torch.strided or leaf.is_nested):
        kind = "a nested tensor" if bad[1].is_nested else f"of layout {bad[1].layout}"
        raise TypeError(f"{bad[0]} is {kind}: pass an ordinary dense tensor, {bad[0]}.to_dense() or a padded one.")


def conformed(tree: Tree, like: Tree, name: str, than: str) -> Tree:
    """`tree` in the structure of `like`."""
    try:
        return conform(tree, structure_of(like))
    except ValueError:
        one, other = (show(structure_of(t)) for t in (tree, like))
        raise ValueError(f"{name} has a different structure from {than}: {one} against {other}.") from None


def check_no_graph(tree: Tree, name: str) -> None:
    """Raise if a leaf has a graph, which would be freed after one window."""
    check_tensors(tree, name)
    if bad := fault(tree, name, lambda leaf: leaf.grad_fn is not None):
        raise ValueError(
            f"{bad[0]} carries a graph ({type(bad[1].grad_fn).__name__}), which the first update would free: detach "
            f"it, or pass initial_state= a function that computes it, or take the gradient of one sequence with "
            f"bptt.backward."
        )


def shapes(tree: Tree) -> str:
    """Shapes and dtypes of a tree's leaves on one line: `(5, 2, 3) float32`, the first few of many."""
    if tree is None:
        return "None"
    told = [f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}" for leaf in leaves(tree)]
    text = "; ".join(told[:4]) + (f"; and {len(told) - 4} more" if len(told) > 4 else "")
    return text if isinstance(tree, torch.Tensor) else f"{type(tree).__name__}({text})"
