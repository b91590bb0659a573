"""How many threads should be used on a machine that others use too?

Forward and backward of `bptt.nn.GRU` (256 units, 32 rows, 64 steps), in a fresh process for each setting: one thread or
as many as there are cores, with OpenMP's threads spinning between regions or asleep, alone and beside as many busy
processes as there are cores. A team of threads waits for its slowest member, so one core that somebody else uses holds
up all of them.

    python benchmarks/threads.py [--quick]

No target is judged: the result depends on the machine and on who else uses it.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

from support import report

MEASURE = """
import json, sys, time, torch, bptt
torch.manual_seed(0)
layer, inputs = bptt.nn.GRU(256, 256), torch.randn(64, 32, 256)
taken = []
for _ in range(int(sys.argv[1])):
    began = time.perf_counter()
    layer(inputs)[0].sum().backward()
    taken.append(time.perf_counter() - began)
print(json.dumps(taken[2:]))
"""


def busy() -> None:
    """Compute until ended."""
    while True:
        sum(i * i for i in range(10_000))


def measured(threads: int, policy: str, calls: int) -> list[float]:
    """Seconds of each call in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    words = [sys.executable, "-c", MEASURE, str(calls)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few calls")
    calls = 4 if parser.parse_args().quick else 60
    cores = len(os.sched_getaffinity(0))
    rows = []
    for others in (0, cores):
        company = [multiprocessing.Process(target=busy, daemon=True) for _ in range(others)]
        for process in company:
            process.start()
        time.sleep(0.5)
        for threads, policy in ((1, "passive"), (cores, "active"), (cores, "passive")):
            taken = sorted(1000 * seconds for seconds in measured(threads, policy, calls))
            median, late = statistics.median(taken), taken[int(0.9 * len(taken))]
            rows.append([others, threads, policy, f"{median:.1f}", f"{late:.1f}"])
        for process in company:
            process.terminate()
            process.join()
    headings = ["other busy processes", "threads", "OMP_WAIT_POLICY", "median, ms per call", "nine of ten below, ms"]
    name = "threads_quick" if calls == 4 else "threads"
    return report(name, headings, rows, [], judged=False, cores=cores, load=os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())
