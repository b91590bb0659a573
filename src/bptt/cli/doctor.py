"""`bptt doctor`: needs nothing but torch, since it is what people run when something is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

import bptt
from bptt.analysis import size
from bptt.cli.printing import UserError, one_line
from bptt.data import PYTHON_DOCS, load_text
from bptt.nn import kernels

PACKAGES = ("tyro", "rich", "matplotlib", "safetensors", "PyYAML", "numpy", "Jinja2", "tensorboard")
HELP = """\
usage: bptt doctor

Show versions, threads, devices, and what is missing and how to get it."""


def run(words: Sequence[str]) -> int:
    """Print what a run would find here; the exit code."""
    if words and words[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if words:
        raise UserError(f"takes no options, but was given {' '.join(words)}")
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    found = [f"{name} {version}" for name, version in versions.items() if version is not None]
    rows = {
        "bptt": f"{bptt.__version__} in {Path(bptt.__file__).parent}",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "extras": ", ".join(found) or "none",
        "cpu": _cpu(),
        "kernels": kernels.describe(),
        "memory": _memory(),
        "device": _device(),
        "text": _text(),
        "missing": f"{', '.join(missing)}. Run: pip install 'bptt[cli]'" if missing else "nothing",
    }
    for name, value in rows.items():
        print(f"{name:<9}{one_line(value)}")
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    cores = os.cpu_count() or 1
    text = f"{cores} cores, torch uses {torch.get_num_threads()} threads"
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > cores / 2 and "OMP_WAIT_POLICY" not in os.environ:
        # Threads that spin while they wait for one another hold the very core that the other one needs.
        text += f", load {busy:.1f}: with other work here, setting OMP_WAIT_POLICY=PASSIVE can be many times faster"
    return text


def _memory() -> str:
    try:
        total = size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return "unknown"
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return total + (f", {size(free[0])} of it available" if free else "")


def _device() -> str:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return "cpu; torch sees no accelerator"
    if device.type != "cuda":
        return f"{device.type}, taken by --device auto"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return "; ".join(f"cuda:{i} {gpu.name}, {size(gpu.total_memory)}" for i, gpu in enumerate(names))


def _text() -> str:
    try:
        return f"{PYTHON_DOCS}, {len(load_text(PYTHON_DOCS)):,} characters"
    except ValueError as error:
        return str(error)
