"""Models out of the folders that `bptt train` writes."""

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bptt.models.layers import CELLS
from bptt.runs import exchange
from bptt.runs.settings import read_settings, small_text
from bptt.runs.weights import load_weights

WEIGHTS, CONFIG, VOCABULARY, SERIES = "weights.safetensors", "config.yaml", "vocabulary.json", "series.json"
LAYERS_MOST = 1000
"""Recurrent layers on top of each other; of more, building alone takes minutes, and none was ever trained."""

M = TypeVar("M", bound=nn.Module)


def must_hold(folder: Path, what: str, *names: str) -> None:
    """Raise ValueError where a folder lacks one of these files; what a killed process left is finished before."""
    try:
        exchange.settle_if_idle(folder)
        missing = [name for name in names if not (folder / name).is_file()]
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror})") from None
    if missing:
        raise ValueError(f"{folder} is {what} (no {missing[0]}). Give a DIR that bptt train wrote")


@contextlib.contextmanager
def damaged(folder: Path) -> Iterator[None]:
    """Turn whatever files of a folder make fail into a ValueError that names it."""
    try:
        yield
    except (ValueError, RecursionError, OSError) as error:
        told = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder}: damaged run folder ({told})") from error


def shape(folder: Path) -> tuple[str, int, int]:
    """Cell, units and layers of a run's settings. Raises ValueError."""
    config = read_settings(folder / CONFIG)
    for name in ("cell", "hidden", "layers"):
        value = config.get(name)
        if value not in CELLS if name == "cell" else type(value) is not int or not 0 < value < 2**63:
            raise ValueError(f"{CONFIG}: {name} is {value}" if name in config else f"{CONFIG}: no {name}")
    return config["cell"], config["hidden"], config["layers"]


def plain(folder: Path, name: str, most: int) -> Any:
    """The JSON of a file of at most so many bytes. Raises ValueError."""
    return json.loads(small_text(folder / name, most))


def filled(folder: Path, make: Callable[[], M], layers: int, stamp: Mapping[str, str], of: str) -> M:
    """`make()` with the weights of a folder, for evaluation. Raises ValueError before anything larger is allocated."""
    safetensors = importlib.import_module("safetensors")
    misfit = ValueError(f"{WEIGHTS} doesn't fit {of}")
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    try:
        if layers > LAYERS_MOST:
            raise misfit
        with torch.device("meta"):
            wanted = {name: tuple(each.shape) for name, each in make().state_dict().items()}
    except (RuntimeError, TypeError, OverflowError):  # a size that nothing has
        raise misfit from None
    if wanted != there:
        raise misfit
    model = make()
    load_weights(folder / WEIGHTS, model, stamp, of)
    return model.eval()
