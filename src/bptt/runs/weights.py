"""A model's weights as a file of safetensors, which fit the model that gets them or are refused."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bptt.runs.files import replace


def _safetensors(what: str) -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError:
        raise ImportError(f"{what} needs safetensors, which isn't installed: pip install safetensors.") from None


def packed(model: nn.Module, stamp: Mapping[str, str] | None = None) -> bytes:
    """What `save_weights` writes."""
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}
    return _safetensors("save_weights").save(tensors, dict(stamp or {}))


def save_weights(path: str | Path, model: nn.Module, stamp: Mapping[str, str] | None = None) -> None:
    """Put a model's parameters and buffers in the place of a file, which is replaced whole.

    stamp: text that the file carries, by which `load_weights` tells it from one of a different run.

    Raises: ImportError without safetensors; OSError, with the old file as it was.

    >>> import tempfile
    >>> one, other = torch.nn.GRU(2, 3), torch.nn.GRU(2, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(f"{folder}/w.safetensors", one, {"run": "a"})
    ...     load_weights(f"{folder}/w.safetensors", other, {"run": "a"})
    >>> torch.equal(one.weight_hh_l0, other.weight_hh_l0)
    True
    """
    data = packed(model, stamp)
    replace(path, lambda part: part.write_bytes(data))


def load_weights(
    path: str | Path, model: nn.Module, stamp: Mapping[str, str] | None = None, of: str = "the model"
) -> None:
    """Put the weights of a file into a model; a file that doesn't fit leaves the model as it was.

    stamp: must agree with what the file carries under these names, if it carries anything. of: what the model was made
        from, for the error.

    Raises: ValueError for a file that can't be read, holds different names, shapes or dtypes, or a parameter that isn't
        finite; ImportError without safetensors.
    """
    path, stamp, module = Path(path), dict(stamp or {}), _safetensors("load_weights")
    safetensors = importlib.import_module("safetensors")
    try:
        weights = module.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            known = {**stamp, **(file.metadata() or {})}
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    own = model.state_dict()
    fits = weights.keys() == own.keys() and all(known[name] == value for name, value in stamp.items())
    if not fits or any((weights[n].dtype, weights[n].shape) != (t.dtype, t.shape) for n, t in own.items()):
        raise ValueError(f"{path.name} doesn't fit {of}")
    parameters = dict(model.named_parameters())
    broken = next((name for name in parameters if not torch.isfinite(weights[name]).all()), None)
    if broken is not None:
        raise ValueError(f"{path.name} holds NaN or infinity, in {broken}")
    model.load_state_dict(weights)
