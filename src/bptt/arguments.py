"""Errors of arguments, raised at the call: what was passed, why it can't be, what to do. One line each."""

import inspect
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt.checks import named
from bptt.schedules.windows import Window


def callable_(value: Any, name: str) -> None:
    """A function or module."""
    if not callable(value):
        raise TypeError(f"{name} must be a function or module, not {type(value).__name__}.")


def count(value: Any, name: str) -> None:
    """An int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")


def switch(value: Any, name: str) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}.")


def truncation(strategy: Any) -> None:
    """k1 >= 1 and k2 >= k1."""
    count(strategy.k1, f"{strategy!r}: k1")
    if strategy.k2 is None:
        return
    count(strategy.k2, f"{strategy!r}: k2")
    if strategy.k2 < strategy.k1:
        raise ValueError(
            f"{strategy!r}: k2 must be at least k1, or some losses get no gradient. Use k2={strategy.k1} or more."
        )


def adaptive(strategy: Any) -> None:
    """A tolerance above 0, whole numbers, and k_min <= k_max."""
    tolerance = strategy.tolerance
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < math.inf:
        raise ValueError(
            f"{strategy!r}: tolerance is the relative bias to allow, a number above 0 such as 0.5, not {tolerance!r}."
        )
    for name in ("k_min", "k_max", "probe_every", "window"):
        count(getattr(strategy, name), f"{strategy!r}: {name}")
    if strategy.k_max < strategy.k_min:
        raise ValueError(f"{strategy!r}: no K lies between them: use k_max={strategy.k_min} or more.")
    if strategy.window < 3:
        raise ValueError(f"{strategy!r}: a slope needs lags to be measured at: use window=3 or more.")


def hazard(law: Callable[[int], float], k: int) -> float:
    """law(k), in [0, 1)."""
    p = float(law(k))
    if not 0 <= p < 1:
        raise ValueError(f"the truncation law gave {p!r} at k={k}: a probability must lie in [0, 1), for w = 1/(1-p).")
    return p


def mean_length(law: Any) -> float:
    """The law's constant for `reduction="mean"`."""
    value = getattr(law, "mean_length", None)
    if value is None:
        raise ValueError(
            f'reduction="mean" divides by the law\'s mean_length, which {named(law)} has not: use reduction="sum".'
        )
    return value


def strategy(value: Any, reduction: str) -> Any:
    """A strategy, and one whose mean has a divisor where it is asked for."""
    if isinstance(value, type) or not callable(getattr(value, "windows", None)):
        hint = f"{value.__name__}(...)" if isinstance(value, type) else "bptt.TruncatedBPTT(k1=20)"
        raise TypeError(f"strategy={value!r} is no strategy: pass a value such as {hint}.")
    if reduction == "mean" and getattr(value, "lengths_known", True):
        value.divisor(Window(0, 0, 1, 1))  # raises where there is no constant
    return value


def plannable(value: Any) -> Any:
    """A strategy whose windows don't depend on what is found during training."""
    if not getattr(strategy(value, "sum"), "lengths_known", True):
        raise ValueError(
            f"{value!r} sets its lengths by what it finds during training, which no plan knows: plan "
            f"TruncatedBPTT(k1=K, k2=2 * K - 1) for the K that you expect."
        )
    return value


def reduction(value: Any) -> str:
    """ "mean" or "sum"."""
    if value not in ("mean", "sum"):
        raise ValueError(f'reduction={value!r}: use "mean" or "sum".')
    return value


def clip(value: Any) -> None:
    """A positive number or None."""
    if value is not None and not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):
        raise ValueError(f"clip_cotangent={value!r} must be a positive number, or None for no clipping.")


def scale(value: Any) -> Any:
    """A finite number above 0, a 0-d tensor, or a function of a tensor."""
    fine = callable(value) if not isinstance(value, Tensor) else value.dim() == 0
    if isinstance(value, Tensor) and value.device.type == "cpu" and fine:  # elsewhere a look would wait for the device
        fine = not value.is_complex() and 0 < value.item() < math.inf
    if not fine and not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):
        raise ValueError(f"scale={value!r} must be a positive number, a 0-d tensor, or a GradScaler's `scale` method.")
    return value


def params(values: Iterable[Tensor] | None) -> list[Tensor] | None:
    """Tensors that require a gradient."""
    if values is None:
        return None
    if isinstance(values, Tensor) or not isinstance(values, Iterable):
        raise TypeError(
            f"params= takes an iterable of tensors such as model.parameters(), not {type(values).__name__}; wrap one "
            f"tensor in a list."
        )
    tensors = list(values)
    if not tensors:
        raise ValueError("params= is empty: leave it out to give a gradient to all leaves.")
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor) or not tensor.requires_grad:
            raise ValueError(f"params=: entry {i} is no tensor that requires a gradient.")
    return tensors


def takes_two(function: Any) -> bool:
    """Whether a call with two positional arguments fits; True where the signature can't be known."""
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # a builtin has none
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def model(value: Any, time_dim: Any) -> None:
    """A recurrence whose time axis is the one declared, and that doesn't read the future."""
    if isinstance(value, type) and issubclass(value, nn.Module):
        raise TypeError(f"model={value.__name__} is a class: pass an instance of it.")
    callable_(value, "model")
    if time_dim not in (0, 1) or isinstance(time_dim, bool):
        raise ValueError(f"time_dim={time_dim!r}: the time axis is 0, or 1 for batch-first data.")
    inner = getattr(value, "_orig_mod", value)
    if isinstance(inner, nn.RNNCellBase):
        raise TypeError(f"model={named(inner)} is a step, not a recurrence over time: pass bptt.scan of it.")
    if not takes_two(inner):
        raise TypeError(
            f"model={named(inner)} can't be called as model(inputs, state): a recurrence is (inputs, state) -> "
            f"(outputs, state). A layer without a state goes into a module or function of that form."
        )
    batch_first = getattr(inner, "batch_first", None)
    if batch_first is True and time_dim == 0:
        raise ValueError(
            f"{named(inner)}(batch_first=True) reads time from axis 1: pass time_dim=1, with inputs and targets "
            f"(B, T, ...)."
        )
    if batch_first is False and isinstance(inner, nn.Module) and time_dim == 1:
        raise ValueError(
            f"time_dim=1, but {named(inner)} was built with batch_first=False: use time_dim=0 or rebuild it."
        )
    if getattr(inner, "bidirectional", None) is True:
        raise ValueError(
            f"{named(inner)}(bidirectional=True) reads the future, so it has no state to carry from step to step: use "
            f"one direction."
        )


def gradient_possible() -> None:
    """Not under inference mode, which no autograd can be switched on in."""
    if torch.is_inference_mode_enabled():
        raise ValueError("no gradient can be taken under torch.inference_mode(): leave it before calling bptt.")


def generator(value: Any) -> torch.Generator | None:
    """A torch.Generator or None."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator={value!r}: pass a torch.Generator, e.g. torch.Generator().manual_seed(0), or None.")
    return value


def no_state(function: Any) -> NoReturn:
    """Neither a state nor a default."""
    raise ValueError(
        f"state=None, and {named(function)} has no default state: pass state= or initial_state= (a pytree of tensors, "
        f"or a function that returns one). Only torch.nn's recurrent layers start from zeros by themselves."
    )


def no_initial_state(function: Any) -> NoReturn:
    """A reset, and nothing to reset to."""
    raise ValueError(
        f"is_start resets a row, but {named(function)} has no default state to return to: pass initial_state=, a "
        f"pytree of tensors or a function that returns one."
    )


def sequence_keywords(
    layer: Any, input: Any, start: Tensor | None, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """`is_start` as bool (T, B) and `cotangent_weight` as (T,) or (T, B) of a recurrent layer's call."""
    name = type(layer).__name__
    if not isinstance(input, Tensor) or layer.bidirectional:
        what = "a bidirectional layer" if isinstance(input, Tensor) else "a PackedSequence"
        raise ValueError(
            f"{name}: is_start and cotangent_weight are not for {what}: use a one-directional layer on a padded tensor."
        )
    if input.dim() == 3:
        T, B = input.shape[:2][::-1] if layer.batch_first else input.shape[:2]
    else:
        T, B = len(input), 1
    fitting = [(T, B), (T,)] if input.dim() == 3 else [(T,), (T, 1)]
    for keyword, value in (("is_start", start), ("cotangent_weight", weight)):
        if value is not None and (not isinstance(value, Tensor) or tuple(value.shape) not in fitting):
            got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"{name}: {keyword} is {got}, inputs of {T} steps need a tensor {fitting[0]} or {fitting[1]}."
            )
    if start is not None:
        start = start.to(input.device, torch.bool).reshape(T, start[0].numel()).expand(T, B).contiguous()
    if weight is not None:
        weight = weight.detach().to(input.device, input.dtype).contiguous()
    return start, weight


def embedded(layer: Any, input: Any, embedding: Any) -> Any:
    """What a recurrent layer's ids (...) are after the lookup in `embedding` (V, I); the values undefined."""
    name, width = type(layer).__name__, layer.input_size
    if not isinstance(embedding, Tensor) or embedding.dim() != 2 or embedding.shape[1] != width or not len(embedding):
        got = tuple(embedding.shape) if isinstance(embedding, Tensor) else repr(embedding)
        raise ValueError(
            f"{name}: embedding is {got}, not (V, {width}), a row for each id: pass nn.Embedding's weight."
        )
    ids = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name}: with embedding= the input is ids, int64 or int32, not {got}.")
    rows = embedding.detach()[0].expand(*ids.shape, width)
    return input._replace(data=rows) if isinstance(input, PackedSequence) else rows
