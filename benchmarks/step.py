"""How fast is a call of one to eight steps, against torch.nn's layer and its cell class, and a stepper?

One layer of fixed weights, I = H, from a given state; "with" is forward and backward with the gradients of the inputs
and of all weights. The cell class is called T times. Outputs are asserted equal (1e-5). All run in turn in one loop,
and samples of a busy moment are dropped.

    python benchmarks/step.py [--processes 3] [--json FILE] [--quick]

Targets: no call below .97 of the better of layer and cell class; geometric mean at T = 1 without gradient >= 1.2; a
stepper at B = 1, H = 24 and 64 within .8 (RNN) and .65 (GRU, LSTM) of the cell's time.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from support.interleave import geometric_mean, in_processes, interleaved, options
from torch import nn

import bptt
from support import Guard, report

CELLS = ("RNN", "GRU", "LSTM")
STEPS, ROWS, UNITS = (1, 2, 4, 8), (1, 8), (24, 64, 256, 1024)
WORST, MEAN, STEPPER = 0.97, 1.2, {"RNN": 0.8, "GRU": 0.65, "LSTM": 0.65}
SAMPLES = 7
Record = dict[str, Any]


def contestants(cell: str, T: int, B: int, H: int, graph: bool) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    layer, ours = getattr(nn, cell)(H, H), getattr(bptt.nn, cell)(H, H)
    single = getattr(nn, f"{cell}Cell")(H, H)
    ours.load_state_dict(layer.state_dict())
    single.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    x, cotangent = torch.randn(T, B, H, requires_grad=graph), torch.randn(T, B, H)
    h, pair = torch.randn(1, B, H), cell == "LSTM"
    state, first = ((h, h.clone()), (h[0], h[0].clone())) if pair else (h, h[0])

    def by_cell() -> torch.Tensor:
        now, found = first, []
        for step in x.unbind():
            now = single(step, now)
            found.append(now[0] if pair else now)
        return torch.stack(found) if T > 1 else found[0][None]

    calls = {
        "layer": (lambda: layer(x, state)[0], layer),
        "cell": (by_cell, single),
        "bptt": (lambda: ours(x, state)[0], ours),
    }
    wanted = {name: [x, *module.parameters()] for name, (_, module) in calls.items()}

    def run(name: str) -> object:
        if graph:
            return torch.autograd.grad(calls[name][0](), wanted[name], cotangent)
        with torch.no_grad():
            return calls[name][0]()

    for name, (call, _) in calls.items():
        torch.testing.assert_close(call(), layer(x, state)[0], rtol=0, atol=1e-5, msg=f"{name} {cell} {T} {B} {H}")
    found: dict[str, Callable[[], object]] = {name: lambda name=name: run(name) for name in calls}
    if T == B == 1 and not graph:
        step, row = ours.stepper(B), x[0].detach()
        found["stepper"] = lambda: step(row)
    return found


def measure(samples: int, guard: Guard, quick: bool) -> list[Record]:
    records = []
    for cell in CELLS:
        for graph in (False, True):
            for H in (4,) if quick else UNITS:
                for T in (1, 2) if quick else STEPS:
                    for B in (1,) if quick else ROWS:
                        taken = interleaved(contestants(cell, T, B, H, graph), samples, guard)
                        records.append({"call": [cell, T, B, H, graph], **vars(taken)})
    return records


def rows_of(processes: list[list[Record]]) -> tuple[list[list[Any]], list[str]]:
    """The table, medians over the processes, and the targets that were missed."""
    rows, missed, singles = [], [], []
    for same in zip(*processes, strict=True):
        cell, T, B, H, graph = same[0]["call"]
        row = [cell, "with" if graph else "without", T, B, H]
        medians = [{who: statistics.median(v) for who, v in r["seconds"].items()} for r in same if r["complete"]]
        if not medians:
            rows.append([*row, *["too busy"] * 5])
            continue
        middle = {who: statistics.median(m[who] for m in medians) for who in medians[0]}
        ratio = statistics.median(min(m["layer"], m["cell"]) / m["bptt"] for m in medians)
        live = statistics.median(m["stepper"] / m["cell"] for m in medians) if "stepper" in middle else None
        shown = [f"{1e6 * middle[who]:.3g}" for who in ("layer", "cell", "bptt")]
        rows.append([*row, *shown, f"{ratio:.2f}", "-" if live is None else f"{live:.2f}"])
        if T == 1 and not graph:
            singles.append(ratio)
        if ratio < WORST:
            missed.append(f"{' '.join(map(str, row))}: {ratio:.2f} of the best rival, target {WORST}")
        if live is not None and H in (24, 64) and live > STEPPER[cell]:
            missed.append(f"stepper {cell} {H}: {live:.2f} of the cell's time, target {STEPPER[cell]}")
    if singles and geometric_mean(singles) < MEAN:
        missed.append(f"T = 1 without gradient: geometric mean {geometric_mean(singles):.2f}, target {MEAN}")
    return rows, missed


def main() -> int:
    args = options(__doc__, "step").parse_args()
    if args.quick:
        args.processes = 1
    if args.processes > 1:
        processes = in_processes(__file__, args.processes, "step")
    else:
        guard = Guard(slack=float("inf") if args.quick else 1.3)
        processes = [measure(1 if args.quick else SAMPLES, guard, args.quick)]
    rows, missed = rows_of(processes)
    headings = ["cell", "gradient", "T", "B", "H", "layer, us", "cell class, us", "bptt, us", "best rival / bptt"]
    busy = any(not record["complete"] for records in processes for record in records)
    name, missed = "step_quick" if args.quick else "step", [] if args.quick else missed
    return report(name, [*headings, "stepper / cell"], rows, missed, args.json, busy, records=processes)


if __name__ == "__main__":
    sys.exit(main())
