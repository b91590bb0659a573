"""Bits per character that updates after each character reach on aⁿbⁿ, whose second half is known from the first.

A GRU of 64 units reads one stream of a^n newline b^n newline, n uniform from 1 to 32: Adam 1e-3 / (1 + .03 √t), 10⁶
characters. Bits are means over the last tenth; .1429 is the least that can be reached. Tallec & Ollivier 2018 report
UORO .147 and truncation after 1, 2 and 16 characters .178, .149 and .144, over the last 10⁶ of 10⁷.

    python benchmarks/online_strings.py [--steps 1000000] [--strategies "UORO;SnAp-1"]

Every strategy that is finished is a file in results/online/, and the table is of all that there are. No target is
judged. `--quick` is a try-out.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import bptt
import bptt.nn
from support import RESULTS, report

FLOOR, FULL = 0.1429, 1_000_000
STRATEGIES: dict[str, Any] = {
    "TBPTT(1)": bptt.TruncatedBPTT(1),
    "TBPTT(16)": bptt.TruncatedBPTT(16),
    "SnAp-1": bptt.SnAp(order=1),
    "UORO": bptt.UORO(),
}
PUBLISHED = {"TBPTT(1)": 0.178, "TBPTT(16)": 0.144, "UORO": 0.147}


def text(steps: int) -> Tensor:
    """Strings one after the other, (steps + 1, 1): a is 0, b is 1, a newline 2."""
    generator, found = torch.Generator().manual_seed(0), list[int]()
    while len(found) <= steps:
        n = int(torch.randint(1, 33, (), generator=generator))
        found += [0] * n + [2] + [1] * n + [2]
    return torch.tensor(found[: steps + 1])[:, None]


def chunks(ids: Tensor, size: int = 10_000) -> Iterator[tuple[Tensor, Tensor]]:
    """Characters as one-hot vectors, and the next ones."""
    for a in range(0, len(ids) - 1, size):
        part = ids[a : a + size + 1]
        yield nn.functional.one_hot(part[:-1], 3).float(), part[1:]


def bits(name: str, steps: int) -> float:
    """Per character, over the last tenth of a run."""
    torch.manual_seed(0)
    layer, line = bptt.nn.GRU(3, 64), nn.Linear(64, 3)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(line(outputs).flatten(0, 1), targets.flatten(), reduction="none")

    optimizer = torch.optim.Adam([*layer.parameters(), *line.parameters()], 1e-3)
    slower = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + 0.03 * t**0.5))
    generator, nats = torch.Generator().manual_seed(0), list[float]()
    for update in bptt.unroll(layer, loss, chunks(text(steps)), strategy=STRATEGIES[name], generator=generator):
        optimizer.step()
        slower.step()
        optimizer.zero_grad()
        nats += [update.mean_loss.item()] * update.steps
    return statistics.fmean(nats[-(steps // 10) :]) / math.log(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=FULL, help="characters")
    parser.add_argument("--strategies", default=";".join(STRATEGIES), help="which, with semicolons between them")
    parser.add_argument("--quick", action="store_true", help="40 characters: a try-out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps, rows = 40 if args.quick else args.steps, []
    files = {name: RESULTS / "online" / f"strings-{steps}-{name}.json" for name in STRATEGIES}
    for name in args.strategies.split(";"):
        if args.quick or not files[name].exists():
            began = time.perf_counter()
            found = {"strategy": name, "bits": bits(name, steps), "seconds": time.perf_counter() - began}
            files[name].parent.mkdir(parents=True, exist_ok=True)
            files[name].write_text(json.dumps(found))
            print(*found.values(), flush=True)
    for name, file in files.items():
        if file.exists():
            rows.append([name, json.loads(file.read_text())["bits"], FLOOR, PUBLISHED.get(name, "")])
    name = "online_strings" if steps == FULL and len(rows) == len(STRATEGIES) else "online_strings_quick"
    headings = ["strategy", "bits per character", "floor", "published, 10⁷"]
    return report(name, headings, rows, [], judged=False, steps=steps)


if __name__ == "__main__":
    sys.exit(main())
