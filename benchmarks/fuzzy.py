"""Is a fuzzy system, trained on its own free runs, a better model than one fitted one step ahead, and can it be read?

The plant, the data and the systems are those of examples/fuzzy.py: 3 x 3 rules on (y, y1), trained by full BPTT,
TBPTT(10) and ARTBP(10) from the linear ARX law, each on every seed; the seed draws the data and ARTBP's cuts.

    run       root mean square error of the free run on the sine. Target: at most 0.25 of the ARX law's, and 0.7 of the
              same system's, fitted one step ahead by least squares
    sense     centres ordered, inside the data's range. Every point of the data's range has a membership of at least 0.2
              in some set. Neighbours overlap (area of the smaller membership over that of the larger, on the same
              range) by at most 0.7. Every rule fires by at least 2 % on average over the measured (y, y1)
    labels    the set that a rule's consequent at its prototype belongs to most is the plant's there too, for at least 7
              of 9 rules, and for more rules than before training

    python benchmarks/fuzzy.py [--seeds 3] [--first 0] [--quick]
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bptt.models import TakagiSugeno
from support import report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import fuzzy as example  # not this file: the folder above was put first


@torch.no_grad()
def sense(model: TakagiSugeno, data: example.Record) -> tuple[bool, float, float, float]:
    """Whether the centres are ordered inside the range; least membership, largest overlap, least mean firing."""
    low, high = data.y.min().item(), data.y.max().item()
    mu = model.memberships(torch.linspace(low, high, 4_001, dtype=example.D))
    areas = [
        (torch.minimum(a, b).sum() / torch.maximum(a, b).sum()).item() for a, b in zip(mu.T, mu.T[1:], strict=False)
    ]
    centres = [low, *model.centres().tolist(), high]
    ordered = all(a < b for a, b in itertools.pairwise(centres))
    firing = model.firing(data.regressors()[:, :2]).mean(0)
    return ordered, mu.amax(1).min().item(), max(areas), firing.min().item()


def judged(name: str, seed: int, quick: bool) -> tuple[list[Any], list[str]]:
    """A row of the table, and what it misses."""
    data = example.measured(seed, *((20, 10) if quick else ()))
    before, model = example.untrained(data), example.untrained(data)
    linear, one_step = (example.free_run(m)[2] for m in (before, example.one_step_ahead(before, data)))
    began = time.perf_counter()
    example.train(model, data, name, seed, *((2,) if quick else ()))
    seconds = time.perf_counter() - began
    error = example.free_run(model)[2]
    ordered, cover, overlap, firing = sense(model, data)
    first, labels = example.right_labels(before), example.right_labels(model)
    checks = {
        f"{error / linear:.3f} of the ARX law's error": error <= 0.25 * linear,
        f"{error / one_step:.3f} of the error of the one-step fit": error <= 0.7 * one_step,
        "centres out of order or range": ordered,
        f"a point of the range belongs to no set by more than {cover:.3f}": cover >= 0.2,
        f"neighbours overlap by {overlap:.3f}": overlap <= 0.7,
        f"a rule fires by {firing:.4f}": firing >= 0.02,
        f"{labels} labels of 9, {first} before training": labels >= 7 and labels > first,
    }
    row = [name, seed, f"{error:.4f}", f"{error / linear:.3f}", f"{error / one_step:.3f}"]
    row += [f"{cover:.2f}", f"{overlap:.2f}", f"{100 * firing:.1f} %", f"{first} to {labels}", f"{seconds:.0f}"]
    return row, [f"{name}, seed {seed}: {what}" for what, met in checks.items() if not met]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--quick", action="store_true", help="a try-out on a fraction of the work: nothing is judged")
    args = parser.parse_args()
    torch.set_num_threads(1)  # rows of nine numbers: threads would only wait for one another
    rows, missed = [], []
    for name in example.METHODS:
        for seed in range(args.first, args.first + (1 if args.quick else args.seeds)):
            row, misses = judged(name, seed, args.quick)
            rows.append(row)
            missed += misses
    headings = ["gradient", "seed", "RMSE", "of ARX", "of one step", "cover", "overlap", "firing", "labels", "seconds"]
    return report("fuzzy_quick" if args.quick else "fuzzy", headings, rows, [] if args.quick else missed)


if __name__ == "__main__":
    sys.exit(main())
