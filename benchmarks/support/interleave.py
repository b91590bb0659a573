"""Several contestants timed in turn, each sample guarded; and a benchmark repeated in fresh processes."""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import INCONCLUSIVE, Guard, seconds

SAMPLE = 0.01  # seconds: shorter runs are repeated until a sample is about this long
PAUSE = 0.01  # seconds in which the threads of the run before, which spin for a while, go to sleep
LONG_PAUSE = 0.5  # at most so many after a long run: JAX frees large arrays on a thread of its own after it returns
SECOND_RUN, LONG_RUN = 1.0, 10.0  # above the one 3 samples have to do; above the other a single one, the first call
FEW = 3
WAIT = 3.0  # seconds to wait for a quiet moment after a sample was dropped


@dataclass(frozen=True)
class Samples:
    """Seconds per run of each contestant, undisturbed samples only."""

    seconds: dict[str, list[float]]
    dropped: float  # share of the samples that the guard refused
    complete: bool  # whether every contestant has as many as asked

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])


def interleaved(contestants: dict[str, Callable[[], object]], count: int, guard: Guard) -> Samples:
    """Samples of all contestants in turn, `count` undisturbed ones of each (fewer of runs over a second).

    A sample is a pause, one run untimed where that is cheap, and then runs for about SAMPLE seconds. It counts if the
    guard's product was near its best speed both before and after. Nobody gets more than 6 times the attempts asked for,
    or 3 times where runs take over a second.
    """
    kept: dict[str, list[float]] = {name: [] for name in contestants}
    repeats: dict[str, int] = {}
    slowest = 0.0
    for name, run in contestants.items():
        guard.wait(WAIT)
        first = seconds(run)
        time.sleep(PAUSE)
        if first < SECOND_RUN or not guard.quiet():  # a first call may have compiled, loaded or allocated something
            first = min(first, seconds(run))
        elif first > LONG_RUN:
            kept[name].append(first)
        slowest = max(slowest, first)
        repeats[name] = max(1, math.ceil(SAMPLE / first))
    if slowest > SECOND_RUN:
        count = min(count, 1 if slowest > LONG_RUN else FEW)
    taken = dropped = 0
    calm = guard.quiet()
    for _ in range(count * (3 if slowest > SECOND_RUN else 6)):
        for name, run in contestants.items():
            if len(kept[name]) >= count and slowest > SECOND_RUN / 10:
                continue  # the others, who lack samples, go on in turn
            time.sleep(PAUSE)
            if repeats[name] > 1 or slowest < SECOND_RUN / 10:
                run()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            sample = (time.perf_counter() - start) / repeats[name]
            time.sleep(min(max(PAUSE, sample / 10), LONG_PAUSE))
            before, calm = calm, guard.quiet()
            taken += 1
            if before and calm:
                kept[name].append(sample)
            else:
                dropped += 1
                guard.wait(WAIT)
                calm = guard.quiet()
        if all(len(values) >= count for values in kept.values()):
            break
    return Samples(kept, dropped / max(taken, 1), all(len(values) >= min(count, FEW) for values in kept.values()))


def options(doc: str, name: str) -> argparse.ArgumentParser:
    """A parser of what all benchmarks of several processes take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--processes", type=int, default=3, help="fresh processes, of which the median counts")
    parser.add_argument("--json", type=Path, help=f"the results file; default: benchmarks/results/{name}.json")
    parser.add_argument("--quick", action="store_true", help="tiny, in one process, nothing judged")
    return parser


def in_processes(script: str, processes: int, name: str) -> list[Any]:
    """The records of `script`, run that often in fresh processes one after the other with this one's arguments.

    The script must take `--processes` and `--json`. Ends with status 2 if a process leaves no results.
    """
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(processes):
            print(f"{name}: process {number + 1} of {processes}", file=sys.stderr, flush=True)
            path = Path(folder) / f"{number}.json"
            command = [sys.executable, script, *sys.argv[1:], "--processes", "1", "--json", str(path)]
            status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
            if not path.exists():
                print(f"{name}: process {number + 1} ended with status {status}, no results", file=sys.stderr)
                sys.exit(INCONCLUSIVE)
            results.append(json.loads(path.read_text())["details"]["records"][0])
    return results


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(list(values))
