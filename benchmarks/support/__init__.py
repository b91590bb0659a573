"""What the benchmarks share: a table, a results file, and paired timing that notices a busy machine."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bptt
from bptt.nn import kernels

RESULTS = Path(__file__).resolve().parent.parent / "results"
INCONCLUSIVE = 2  # exit status: the machine was too busy for a verdict
ATTEMPTS = 8


def table(headings: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; floats are shown with four significant digits."""

    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"

    return "\n".join([line(headings), "|" + "---|" * len(headings), *(line(row) for row in rows)])


def machine() -> dict[str, Any]:
    """What a figure depends on: versions, threads, the processor, and which kernels were chosen."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "bptt": bptt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processor": facts.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": [f for f in facts.get("flags", "").split() if f.startswith(("avx", "fma", "amx"))],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernels.chosen.name if kernels.chosen else f"none: {kernels.reason}",
    }


def report(
    name: str,
    headings: list[str],
    rows: list[list[Any]],
    missed: list[str],
    file: Path | None = None,
    busy: bool = False,
    judged: bool = True,
    **details: Any,
) -> int:
    """Print the table and the verdict, write `results/NAME.json` (or `file`), and return the exit status.

    A name that ends in "_quick" is a try-out: no target was judged. busy: some rows lack undisturbed samples.
    judged: whether there are targets at all.
    """
    print(table(headings, rows))
    for miss in missed:
        print(f"MISSED: {miss}")
    if name.endswith("_quick"):
        print("A try-out: no target was judged.")
    elif not judged:
        print("No target was judged: there is none.")
    elif busy:
        print("The machine was too busy for a verdict on every row.")
    elif not missed:
        print("All targets met.")
    file = file or RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    result = {"benchmark": name, "headings": headings, "rows": rows, "missed": missed, "details": details, **machine()}
    file.write_text(json.dumps(result, indent=2, default=str) + "\n")
    return 1 if missed else INCONCLUSIVE if busy and not name.endswith("_quick") else 0


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Paired:
    """Medians over pairs that were run side by side."""

    ratio: float  # median of second / first, pair by pair
    spread: str  # and the quartiles of that
    first: float  # median seconds
    second: float
    pairs: int
    dropped: int


class Guard:
    """Tells whether the machine is quiet: whether a fixed matrix product runs near the best time seen so far."""

    def __init__(self, slack: float = 1.3):
        self.matrix = torch.randn(512, 512)
        self.slack = slack
        self.best = min(min(self.probe()) for _ in range(20))

    def probe(self) -> list[float]:
        return [seconds(lambda: torch.mm(self.matrix, self.matrix)) for _ in range(3)]

    def quiet(self) -> bool:
        torch.mm(self.matrix, self.matrix)  # wakes the threads
        now = self.probe()
        self.best = min(self.best, *now)
        return max(now) <= self.best * self.slack

    def wait(self, limit: float) -> None:
        """Return as soon as the machine is quiet, after `limit` seconds at the latest."""
        end = time.perf_counter() + limit
        while not self.quiet() and time.perf_counter() < end:
            time.sleep(0.1)


def paired(first: Callable[[], object], second: Callable[[], object], pairs: int, guard: Guard) -> Paired:
    """Time `first` and `second` alternately, in changing order, until `pairs` undisturbed pairs exist.

    A pair counts if the guard's product ran near its best speed before, between and after. After ATTEMPTS * pairs the
    process ends with status 2: a verdict from a busy machine would mean nothing.
    """
    first()
    second()  # warm up: threads, allocator, first-call work
    kept: list[tuple[float, float]] = []
    for attempt in range(ATTEMPTS * pairs):
        order = (first, second) if attempt % 2 == 0 else (second, first)
        calm = guard.quiet()
        one = seconds(order[0])
        calm = guard.quiet() and calm
        other = seconds(order[1])
        calm = guard.quiet() and calm
        if calm:
            kept.append((one, other) if attempt % 2 == 0 else (other, one))
        if len(kept) == pairs:
            ratios = sorted(b / a for a, b in kept)
            return Paired(
                ratio=statistics.median(ratios),
                spread=f"{ratios[pairs // 4]:.2f}..{ratios[pairs - 1 - pairs // 4]:.2f}",
                first=statistics.median(a for a, _ in kept),
                second=statistics.median(b for _, b in kept),
                pairs=pairs,
                dropped=attempt + 1 - pairs,
            )
    print(f"The machine was too busy: {len(kept)} undisturbed pairs of {pairs} in {ATTEMPTS * pairs}.", file=sys.stderr)
    sys.exit(INCONCLUSIVE)
