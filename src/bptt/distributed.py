"""Several processes that train one model: the mean of their gradients, and saved states with the rows of all."""

import pickle
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from bptt import _ranks, _tree

__all__ = ["average_gradients", "gather_state", "narrow_state"]


def average_gradients(params: Iterable[Tensor], group: Any = None) -> None:
    """Replace each `.grad` by its mean over the processes of a group, between an update and the optimiser's step.

        g <- (1/N) Σ_r g_r,  r = 0 .. N-1                                                 (1)

    params: the same tensors in the same order on every rank, such as `model.parameters()`. A missing gradient counts as
        zero if another rank has one, and stays missing if no rank has one.
    group: a process group of torch.distributed, the default one for None. Without an initialised group, or in a group
        of one, nothing is done.

    All ranks call it, once per update or once for several accumulated updates; `bptt.unroll` needs `group=` as well,
    since ranks have to agree before. A model in DistributedDataParallel or `fully_shard` averages by itself.
    If all ranks have equally many rows, (1) is the gradient of one process with all rows, under every `reduction`.
    Raises TypeError for sparse gradients and for sharded parameters.
    Cost: one all-reduce for each dtype and device, of a copy of all gradients and one number per parameter.

    >>> import bptt, torch
    >>> model, loss = torch.nn.GRU(3, 4), bptt.per_step(torch.nn.MSELoss())
    >>> stream = [(torch.zeros(7, 2, 3), torch.zeros(7, 2, 4))]
    >>> group = torch.distributed.group.WORLD  # None where no group was initialised
    >>> for update in bptt.unroll(model, loss, stream, strategy=bptt.TruncatedBPTT(k1=5), group=group):
    ...     bptt.distributed.average_gradients(model.parameters())
    """
    given = list(params)
    _check(given)
    _ranks.check_group(group)
    if not _ranks.is_running() or (size := dist.get_world_size(group)) == 1:
        return
    kinds: dict[Any, list[Tensor]] = {}
    for p in given:
        if p.requires_grad or p.grad is not None:
            kinds.setdefault((p.dtype.to_real(), p.device), []).append(p)
    for (dtype, device), some in kinds.items():
        values = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
        has = torch.tensor([p.grad is not None for p in some], dtype=dtype, device=device)
        flat = torch.cat([*(_real(value).reshape(-1) for value in values), has]).div_(size)
        dist.all_reduce(flat, group=group)
        *parts, had = flat.split([*(_real(value).numel() for value in values), len(some)])
        for p, value, part, anywhere in zip(some, values, parts, had.tolist(), strict=True):
            if anywhere:
                _real(value).copy_(part.reshape(_real(value).shape))
                p.grad = value


BY_ROW = ("jacobians", "units")
"""Parts of what is carried of ∂s/∂θ that have a row for each of the batch."""


def gather_state(state: dict[str, Any], state_batch_dim: Any = 1, group: Any = None) -> dict[str, Any]:
    """Make of each rank's `state_dict()` of `unroll` that of one process with the rows of all ranks, in their order.

    state: taken after the same update on every rank, on streams that read the same steps.
    state_batch_dim: the axis of the rows, as in `unroll`: an int, or a pytree of ints, None for a leaf without rows, of
        which the first rank's is taken. group: as in `average_gradients`; without one the state is returned as it is.

    All ranks call it, and all get the state, with its tensors on the CPU. One process can continue with it, or any
    number of ranks, each with the rows that `narrow_state` gives it.
    Raises ValueError if the ranks are at different steps or places of their streams, and for UORO.
    Cost: each rank receives the states of all rows.

    >>> import bptt, torch
    >>> model, loss = torch.nn.GRU(3, 4), bptt.per_step(torch.nn.MSELoss())
    >>> stream = [(torch.zeros(7, 6, 3), torch.zeros(7, 6, 4))]
    >>> run = bptt.unroll(model, loss, stream, strategy=bptt.TruncatedBPTT(k1=5))
    >>> _ = next(run)
    >>> whole = bptt.distributed.gather_state(run.state_dict())
    >>> whole["carried"].shape, bptt.distributed.narrow_state(whole, slice(2, 4))["carried"].shape
    (torch.Size([1, 6, 4]), torch.Size([1, 2, 4]))
    """
    _check_state(state)
    _ranks.check_group(group)
    if not _ranks.is_running() or (size := dist.get_world_size(group)) == 1:
        return state
    leaves, structure = _tree.flatten(state["carried"])
    found: list[Any] = [None] * size
    place = state["step"], pickle.dumps(state["stream"])
    mine = (place, state["run"]["rows"], state.get("influence"), [leaf.cpu() for leaf in leaves])
    dist.all_gather_object(found, mine, group=group)
    first = found[0][0]
    for rank, ((step, stream), *_) in enumerate(found):
        if step != first[0] or stream != first[1]:
            what = f"at step {step}" if step != first[0] else "elsewhere in its stream"
            raise ValueError(
                f"gather_state: rank {rank} stands {what}, rank 0 at step {first[0]}: call it on all ranks after the "
                f"same update, of streams that read the same steps."
            )
    axes = _tree.by_leaf(state_batch_dim, state["carried"])
    each = zip(axes, *(values for *_, values in found), strict=True)
    carried = [values[0] if dim is None else torch.cat(values, dim) for dim, *values in each]
    rows = [count for _, count, *_ in found]
    run = {**state["run"], "rows": None if None in rows else sum(rows), "measured": rows[0]}
    influence = _joined([each for _, _, each, _ in found])
    return {**state, "carried": _tree.unflatten(carried, structure), "influence": influence, "run": run}


def narrow_state(state: dict[str, Any], rows: slice, state_batch_dim: Any = 1) -> dict[str, Any]:
    """Some rows of a `state_dict()` of `unroll`, for a rank to load and continue with.

    state: as `gather_state` gives it, or a single process's. rows: a slice with step 1.
    state_batch_dim: as in `gather_state`.
    Raises ValueError for rows that aren't there. Cost: none; the tensors are views.
    """
    _check_state(state)
    run = state["run"]
    start, stop = (0 if rows.start is None else rows.start), (run["rows"] if rows.stop is None else rows.stop)
    if run["rows"] is not None and not (rows.step in (None, 1) and 0 <= start < stop <= run["rows"]):
        raise ValueError(f"narrow_state: rows={rows} of a run of {run['rows']} rows: pass a slice within these.")
    leaves, structure = _tree.flatten(state["carried"])
    axes = _tree.by_leaf(state_batch_dim, state["carried"])
    some = [
        leaf if dim is None else leaf.narrow(dim, start, stop - start) for leaf, dim in zip(leaves, axes, strict=True)
    ]
    own = {**run, "rows": None if run["rows"] is None else stop - start, "measured": run.get("measured", run["rows"])}
    influence = state.get("influence")
    if influence:
        _check_by_row(influence)
        influence = {
            name: {key: each[start:stop] for key, each in part.items()} if name in BY_ROW else part
            for name, part in influence.items()
        }
    return {**state, "carried": _tree.unflatten(some, structure), "influence": influence, "run": own}


def _joined(each: list[Any]) -> Any:
    """What is carried of ∂s/∂θ for the rows of all ranks, in their order; patterns are joined over ranks."""
    first = each[0]
    if not first:
        return first
    _check_by_row(first)

    def one(name: str, parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {key: one(name, [part[key] for part in parts]) for key in parts[0]}
        if parts[0] is None:
            return None
        parts = [part.cpu() for part in parts]
        return torch.cat(parts) if name in BY_ROW else torch.stack(parts).any(0)

    return {name: one(name, [part[name] for part in each]) for name in first}


def _check_by_row(influence: dict[str, Any]) -> None:
    if not any(name in influence for name in BY_ROW):
        raise ValueError(
            "what UORO carries belongs to its rows together and can be neither joined nor divided: continue with as "
            "many ranks as before, each with its own state_dict()."
        )


def _check_state(state: Any) -> None:
    if not isinstance(state, dict) or not {"carried", "run", "step", "stream"} <= state.keys():
        raise ValueError(f"{type(state).__name__} isn't a state of a run: pass what state_dict() of `unroll` gave.")


def _real(value: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, on the same memory."""
    return torch.view_as_real(value) if value.is_complex() else value


def _check(params: list[Tensor]) -> None:
    for i, p in enumerate(params):
        if not isinstance(p, Tensor):
            raise TypeError(f"average_gradients: entry {i} is {type(p).__name__}: pass tensors, as model.parameters().")
        if hasattr(p, "device_mesh"):
            raise TypeError(
                f"average_gradients: entry {i} is sharded over processes, whose gradient FSDP2 averages itself: leave "
                f"this call out."
            )
        if p.grad is not None and p.grad.layout != torch.strided:
            raise TypeError(
                f"average_gradients: entry {i} has a sparse gradient: make it dense, as with Embedding(sparse=False)."
            )
