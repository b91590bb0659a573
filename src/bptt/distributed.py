"""Several processes that train one model without a wrapper: the mean of their gradients, in one reduction an update."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from bptt import _ranks

__all__ = ["average_gradients"]


def average_gradients(params: Iterable[Tensor], group: Any = None) -> None:
    """Replace each `.grad` by its mean over the processes of a group, between an update and the optimiser's step.

        g <- (1/N) Σ_r g_r,  r = 0 .. N-1                                                 (1)

    params: the same tensors in the same order on every rank, such as `model.parameters()`. One without a gradient on
        some ranks counts as zero there, and without any on all ranks it stays without.
    group: a process group of torch.distributed, the default one for None. Without an initialised group, or in a group
        of one, nothing is done.

    All ranks call it, once an update or once for several that were accumulated; for what `bptt.unroll` has to agree on
    before, give it `group=` as well. A model in DistributedDataParallel or `fully_shard` averages by itself.
    With as many rows on each rank, (1) is the gradient of one process with all rows, under every `reduction`.
    Raises TypeError for sparse gradients and for sharded parameters.
    Cost: one all-reduce for each dtype and device, of a copy of all gradients and one number a parameter.

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
