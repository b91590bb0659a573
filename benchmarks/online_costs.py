"""What a step of the forward strategies costs beside one of truncation, in time and in bytes.

    python benchmarks/online_costs.py

Target: SnAp-1 of a GRU with 128 units, one row, at most 3 times as long a step as TBPTT's. `--quick` is a try-out.
"""

import argparse
import itertools
import sys
import time

import torch
from torch import nn

import bptt
import bptt.nn
from support import report

CELLS = {"GRU": (bptt.nn.GRU, 128), "LSTM": (bptt.nn.LSTM, 128), "RNN": (bptt.nn.RNN, 64)}
EXACT = "RNN"  # RTRL of the others would take seconds a step


def timed(layer: nn.Module, strategy: bptt.Strategy, k1: int, rows: int, width: int) -> tuple[float, float]:
    """Microseconds per step, the best of some runs, and bytes held."""
    chunk = torch.randn(40 * k1, rows, 32), torch.randn(40 * k1, rows, width)
    best, held = float("inf"), 0.0
    for _ in range(7):
        updates = bptt.unroll(layer, bptt.per_step(nn.MSELoss()), [chunk], strategy=strategy)
        next(updates)
        began = time.perf_counter()
        held = max(update.memory_bytes for update in updates)
        best = min(best, (time.perf_counter() - began) / (39 * k1))
    return 1e6 * best, held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="layers of 8 units: a try-out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, missed = [], []
    for (cell, (make, units)), k1, lanes in itertools.product(CELLS.items(), (1, 25), (1, 8)):
        units = 8 if args.quick else units
        layer = make(32, units)
        plain, least = timed(layer, bptt.TruncatedBPTT(k1), k1, lanes, units)
        wanted = [bptt.SnAp(1, k1), bptt.UORO(k1), *([bptt.RTRL(k1)] if cell == EXACT and lanes == 1 else [])]
        for strategy in wanted:
            took, held = timed(layer, strategy, k1, lanes, units)
            rows.append([cell, units, lanes, k1, strategy.spec, plain, took / plain, held / least])
            if cell == "GRU" and lanes == 1 and isinstance(strategy, bptt.SnAp) and took > 3 * plain:
                missed.append(f"SnAp(1, k1={k1}) of a GRU takes {took / plain:.2f} times as long as TBPTT")
    headings = ["layer", "units", "rows", "k1", "strategy", "TBPTT, µs per step", "time, ratio", "bytes, ratio"]
    name, missed = ("online_costs_quick", []) if args.quick else ("online_costs", missed)
    return report(name, headings, rows, missed)


if __name__ == "__main__":
    sys.exit(main())
