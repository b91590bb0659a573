"""What the library takes from torch under private names: what each is for, and ("Gone:") what to do without it.

`tests/test_private_torch.py` compares each with what can be observed. torch's pytrees are used in `_tree.py`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.utils import parametrizations, parametrize

Model = TypeVar("Model")

_core: Any = torch._C

WRAPPED = "_orig_mod"
"""Where `torch.compile(module)` keeps the module, also in the names of its parts. Gone: its successor's name."""

NormBase = _NormBase
"""Batch and instance norm, with their running statistics. Gone: a tuple of the public classes."""

PowerIteration = parametrizations._SpectralNorm  # pyright: ignore[reportPrivateUsage]
"""What parametrizations.spectral_norm registers, with vectors as buffers. Gone: the type found on a small layer."""

frame_callback = get_eval_frame_callback
"""None or False unless torch.compile rewrites the frames to come. Gone: have `uncompiled` disable it at each call."""


def version(tensor: Tensor) -> int:
    """What each change in place raises, for all that share the memory. Gone: compare with a copy."""
    return tensor._version


def base(tensor: Tensor) -> Tensor:
    """The tensor that it is a view of, or itself. Gone: a layer's weight counts as saved where it is transposed."""
    return tensor if tensor._base is None else tensor._base


def identity(storage: torch.UntypedStorage) -> int:
    """The same for all tensors on one storage, other than of any that lives. Gone: data_ptr(), but 0 on "meta"."""
    return storage._cdata


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """A tensor, or the tensors that a sparse one is made of; none if there is no storage to look at.

    Gone, for those of coordinates: the parts of coalesce(), which copies.
    """
    if tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []


def saved_tensors_hooks() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """The user's pack and unpack around this call, to be called by ours. Gone: theirs are left out while measuring."""
    return _core._autograd._top_saved_tensors_default_hooks(False)


def apply(function: type[torch.autograd.Function], *given: Any) -> Any:
    """Its `apply`, a few microseconds faster, for when no function transform is active. Gone: `function.apply`."""
    return super(torch.autograd.Function, function).apply(*given)  # pyright: ignore[reportAttributeAccessIssue]


def skip_compiling(*functions: Callable[..., Any]) -> None:
    """Let torch.compile, if in use, run these functions unchanged, and `version` and its like; nothing is imported.

    Gone: torch.compiler.disable, whose import costs a second.
    """
    if compiler := sys.modules.get("torch._dynamo.decorators"):
        for function in (*functions, version, base, identity, dense_parts):
            compiler.skip(function)


def gradient_hooks(leaf: Tensor) -> Any:
    """The hooks of register_post_accumulate_grad_hook, by number, or None. Gone: the user is asked to remove them."""
    return getattr(leaf, "_post_accumulate_grad_hooks", None)


def set_gradient_hooks(leaf: Tensor, hooks: Any) -> None:
    """Let a leaf that has hooks call these instead; none of them for an empty mapping."""
    leaf._post_accumulate_grad_hooks = hooks


def buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own, to be exchanged without its `__setattr__`. Gone: named_buffers(recurse=False) and setattr."""
    return module._buffers


def parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own, as `buffers`."""
    return module._parameters


def call_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """What runs before and after forward. Gone: nothing that only hooks hold is seen."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def flat_weights(layer: nn.RNNBase) -> list[Any]:
    """All weights in the order of torch's kernels, as they were at the last update. Gone: by `all_weights`."""
    return layer._flat_weights


def update_flat_weights(layer: nn.RNNBase) -> None:
    """Let `flat_weights` be the current attributes, which torch.func.functional_call replaces."""
    layer._update_flat_weights()


def unwrapped(model: Model) -> Model:
    """The module under `torch.compile` and DistributedDataParallel, in any order, or the model itself."""
    inner: Any = model
    while isinstance(inner, DDP) or hasattr(inner, WRAPPED):
        inner = inner.module if isinstance(inner, DDP) else getattr(inner, WRAPPED)
    return inner


def joins(wrapper: DDP) -> bool:
    """Whether `DDP.join()` is active. Gone: False; each call of the model then waits for the others in vain."""
    return wrapper._join_config.enable


@contextmanager
def gathered(sharded: Any) -> Iterator[None]:
    """A block in which a module of `fully_shard` keeps its own parameters whole, so that calls don't communicate.

    Gone: calls that differ from rank to rank are refused.
    """
    state = sharded._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    kept = [(g, g.post_forward_mesh_info, g.reshard_after_backward) for g in groups if g is not None]
    sharded.unshard()
    for group, *_ in kept:
        group.post_forward_mesh_info, group.reshard_after_backward = None, False
    try:
        yield
    finally:
        for group, forward, backward in kept:
            group.post_forward_mesh_info, group.reshard_after_backward = forward, backward
        sharded.reshard()


def is_reduced(wrapper: DDP) -> bool:
    """Whether no gradient is waited for after a backward pass. Gone: True; the next call then says what is missing."""
    try:
        wrapper._check_reducer_finalized()
    except RuntimeError:
        return False
    return True


def is_compiled(model: Any) -> bool:
    """Whether torch.compile compiles any part of it. Gone: True; all models are then checked over whole windows."""
    if not isinstance(model, nn.Module):
        return hasattr(model, "_torchdynamo_orig_callable")
    return any(hasattr(m, WRAPPED) or getattr(m, "_compiled_call_impl", None) for m in model.modules())


def caches_parametrizations() -> bool:
    """Whether we are inside parametrize.cached(). Gone: see whether a parametrized weight is the same twice."""
    return parametrize._cache_enabled > 0


def is_watched() -> bool:
    """Whether Python is called by operations, or they are transformed. Gone: True, for torch's own forward."""
    return (
        _core._len_torch_dispatch_stack() > 0
        or _core._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for many under torch.func.vmap, with its numbers hidden. Gone: False; torch's own error."""
    return _core._functorch.is_batchedtensor(tensor)


def is_wrapped(tensor: Tensor | None) -> bool:
    """Whether it has no memory of its own: is_grads_batched=True, torch.func. Gone: True, the slow way back."""
    if tensor is None:
        return False
    return _core._functorch.is_legacy_batchedtensor(tensor) or _core._functorch.is_functorch_wrapped_tensor(tensor)
