"""A policy trained through the chaotic Lorenz system by five methods with equally many passes: which of them arrive?

The system, the policy, its cost and the methods are those of examples/lorenz.py. The settings were chosen on seeds
from 100 on; here the seeds are 0 to 4. A run arrives if the distance to C⁺, from starts that training never saw, is
below 1 on average over these starts and the last 200 of 1,000 steps. Targets:

    gradient   its norm before training grows by a factor of at least 1e4 from a horizon of 50 steps to one of 1,000;
               with clipped cotangents it stays within a factor of 2
    trained    TBPTT(50), ARTBP(50), and full BPTT with clipped cotangent arrive on >= 4 of 5 seeds, full BPTT without
               any clip on <= 1; with the gradient's norm clipped it is reported only

The policies of several seeds are run side by side, as rows that share nothing; for ARTBP each seed is run alone, so
that its cuts are its own.

    python benchmarks/lorenz.py [--only NAME] [--quick]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import bptt
from support import report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import lorenz as example  # not this file: the folder above was put first

Row = list[Any]  # question, one value a seed, target, whether it was met (None: no target)
ARRIVED = 1.0
TARGETS = {  # of five seeds, how many arrive
    "TBPTT(50)": (">= 4", lambda count: count >= 4),
    "full, cotangent clipped": (">= 4", lambda count: count >= 4),
    "full BPTT": ("<= 1", lambda count: count <= 1),
    "ARTBP(50)": (">= 4", lambda count: count >= 4),
    "full, gradient clipped": ("", None),
}


def starts(seeds: range, rows: int) -> torch.Tensor:
    return example.starts([torch.Generator().manual_seed(1_000 + seed) for seed in seeds], rows)


def shown(values: torch.Tensor) -> str:
    return " ".join(f"{value:.2g}" for value in values.tolist())


def gradient(seeds: range, steps: int, rows: int) -> list[Row]:
    model, z, output = bptt.scan(example.Controlled(seeds)), starts(seeds, rows), []
    for name, bound in {"exact": None, "cotangent clipped": example.BOUND}.items():
        near, far = (example.gradient_norms(model, z, horizon, bound) for horizon in (steps // 20, steps))
        ratio = far / near
        met = bool((ratio >= 1e4).all() if bound is None else ((ratio <= 2) & (ratio >= 0.5)).all())
        output.append([f"gradient {name}: over {steps // 20} steps", shown(near), "", None])
        output.append([f"gradient {name}: over {steps} steps", shown(far), "", None])
        output.append([f"gradient {name}: ratio", shown(ratio), ">= 1e4" if bound is None else "within 2 times", met])
    return output


def trained(name: str, seeds: range, passes: int, steps: int, rows: int) -> list[Row]:
    away = []
    for part in [range(s, s + 1) for s in seeds] if name == "ARTBP(50)" else [seeds]:
        model = example.train(example.METHODS[name], part, passes, steps, rows)
        away.append(example.distance(model, starts(part, rows), steps)[-example.TAIL :].mean((0, 2)))
        print(name, part, shown(away[-1]), file=sys.stderr, flush=True)
    values = torch.cat(away)
    count, (target, judge) = int((values < ARRIVED).sum()), TARGETS[name]
    return [
        [f"{name}: distance", shown(values), "", None],
        [f"{name}: arrived", f"{count} of {len(seeds)}", target, None if judge is None else judge(count)],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", choices=["gradient", *TARGETS], help="one part; default: all of them")
    parser.add_argument("--quick", action="store_true", help="tiny, nothing judged")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small are slower on several
    seeds, passes, steps, rows = (range(2), 1, 40, 3) if args.quick else (range(5), *SIZE)
    rows_of: list[Row] = []
    for name in [args.only] if args.only else ["gradient", *TARGETS]:
        found = gradient(seeds, steps, rows) if name == "gradient" else trained(name, seeds, passes, steps, rows)
        rows_of += found
        print(*found, sep="\n", file=sys.stderr, flush=True)
    missed = [] if args.quick else [f"{row[0]}: {row[1]}, not {row[2]}" for row in rows_of if row[3] is False]
    part = [f"{list(TARGETS).index(args.only)}" if args.only in TARGETS else args.only] if args.only else []
    name = "_".join(["lorenz", *part, *(["quick"] if args.quick else [])])
    return report(name, ["question", "seeds 0 to 4", "target"], [row[:3] for row in rows_of], missed)


SIZE = (example.PASSES, example.STEPS, example.ROWS)

if __name__ == "__main__":
    sys.exit(main())
