"""The random numbers of a process, as a state to save beside the weights."""

import random
from typing import Any

import torch


def random_state(device: str | torch.device = "cpu") -> dict[str, Any]:
    """The states of torch's random numbers, on the CPU and on `device`, and of Python's.

    Returns: a dictionary that `Snapshots` saves. NumPy's generators are not in it.

    >>> before = random_state()
    >>> drawn = torch.rand(3)
    >>> set_random_state(before)
    >>> torch.equal(torch.rand(3), drawn)
    True
    """
    kind = torch.device(device).type
    on_device = None if kind == "cpu" else torch.get_device_module(kind).get_rng_state()
    return {"cpu": torch.get_rng_state(), "device": on_device, "python": random.getstate()}


def set_random_state(state: dict[str, Any], device: str | torch.device = "cpu") -> None:
    """Put back what `random_state` returned.

    device: as given to `random_state`; on the CPU, a device's own state is left out.

    >>> set_random_state(random_state())
    """
    kind = torch.device(device).type
    torch.set_rng_state(state["cpu"])
    if state["device"] is not None and kind != "cpu":
        torch.get_device_module(kind).set_rng_state(state["device"])
    random.setstate(state["python"])
