"""Do runs that were killed with SIGKILL at random moments resume, and end with the bits of a run that wasn't killed?

    python benchmarks/crash.py [--kills 100]

A small `bptt train` and a small `bptt compare` are each run once undisturbed, and then again and again with a SIGKILL
after a random time, until as many kills as asked for have been made. Every run that was killed is resumed, and killed
again now and then, until it ends. Each command runs in a process forked from this one, so that it is killed at work,
not while importing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bptt.cli import main
from support import report

KILLS = 100
TRAIN = shlex.split("train --data text.txt --hidden 16 --batch 4 --strategy artbp:12 --steps 160 --device cpu --out")
COMPARE = shlex.split("compare --strategies tbptt:4,artbp:4 --budget 1000 --seeds 2 --draws 3 --hidden 8 --out")
NOT_EQUAL = ("elapsed", "seconds", "memory_bytes")
"""What a clock says, and the bytes of a window that was measured after another one."""


def command(words: list[str], after: float | None = None) -> int | None:
    """Run `bptt` in a process of its own; its exit code, None if it was killed `after` so many seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for number in (1, 2):
                os.dup2(null, number)
            code = main(words)
        finally:  # whatever was raised, this process ends here
            os._exit(code)
    ends = None if after is None else time.monotonic() + after
    while ends is None or time.monotonic() < ends:
        pid, status = os.waitpid(child, 0 if ends is None else os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def trained(path: Path) -> tuple[bytes, list[dict[str, object]]]:
    """Weights and metrics of a run; raises for a line that isn't whole."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    records = [{k: v for k, v in line.items() if k not in NOT_EQUAL} for line in lines]
    return (path / "weights.safetensors").read_bytes(), records


def compared(path: Path) -> dict[str, object]:
    """Weights and numbers of a comparison's parts."""
    found: dict[str, object] = {}
    for part in sorted((path / "parts").iterdir()):
        if part.suffix == ".json":
            found[part.name] = bare(json.loads(part.read_text()))
        else:
            found[part.name] = part.read_bytes()
    return found


def bare(value: object) -> object:
    """Without what differs from run to run."""
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if not any(name in k for name in NOT_EQUAL)}
    if isinstance(value, list):
        return [bare(each) for each in value]
    return value


def resume(path: Path) -> list[str]:
    """The command that goes on with a run, or starts it where it was killed before it had a folder."""
    begun = (path / "checkpoints").is_dir() or (path / ".ready").is_dir()
    return ["train", "--resume", str(path)] if begun else [*TRAIN, str(path)]


def crash(
    name: str, start: list[str], again: Callable[[Path], list[str]], result: Callable[[Path], object], kills: int
) -> list[object]:
    """Kill runs `kills` times: a row of how many runs failed, and how many ended unlike the first."""
    began = time.monotonic()
    if command([*start, f"{name}-whole"]) != 0:
        raise SystemExit(f"bptt {' '.join(start)} fails without being killed")
    seconds, whole = time.monotonic() - began, result(Path(f"{name}-whole"))
    done = runs = equal = failed = 0
    while done < kills:
        path, runs = Path(f"{name}-{runs}"), runs + 1
        code = command([*start, str(path)], random.uniform(0, seconds))
        while code is None and done < kills:
            done += 1
            code = command(again(path), random.uniform(0, seconds) if random.random() < 0.7 else None)
        code = command(again(path)) if code is None else code
        failed += code != 0
        with contextlib.suppress(OSError, ValueError):
            equal += code == 0 and result(path) == whole
    return [name, done, runs, failed, runs - equal]


def run(kills: int) -> list[list[object]]:
    """Both commands."""
    torch.set_num_threads(1)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("text.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 60)
        trains = crash("train", TRAIN, resume, trained, kills)
        compares = crash("compare", COMPARE, lambda path: [*COMPARE, str(path)], compared, kills)
    return [trains, compares]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="SIGKILL at random moments.")
    parser.add_argument("--kills", type=int, default=KILLS, help="of each command")
    kills = parser.parse_args().kills
    rows = run(kills)
    missed = [f"{name}: {failed} of {n} runs failed, {unlike} differ" for name, _, n, failed, unlike in rows if unlike]
    file = "crash" if kills >= KILLS else "crash_quick"
    sys.exit(report(file, ["command", "kills", "runs", "failed", "differ"], rows, missed))
