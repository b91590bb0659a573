"""How fast is `bptt.nn.CTRNN`, noise on, against a Python loop over torch's operators?

Forward and backward of a layer with fixed α, with the gradients of its weights; both forms, with tanh, since two
computations of a relu network differ at its kink. The loop takes the products with the inputs of all steps at once, and
draws its noise step by step with torch.randn_like. `bptt.nn.RNN`, which has neither leak nor noise, runs beside them,
and so does drawing the noise alone, with torch.randn. All run in turn in one loop, and samples of a busy moment are
dropped. Before anything is timed, the layer without noise is asserted equal to the loop without noise (1e-4).

    python benchmarks/ctrnn.py [--processes 3] [--json FILE] [--quick]

Targets: the loop takes >= 15, 5 and 2.2 times as long as the layer, in the order of the table.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from support.interleave import in_processes, interleaved, options
from torch.nn import functional

import bptt
from support import Guard, report

SHAPES = [(100, 16, 6, 50), (300, 64, 6, 100), (300, 128, 6, 500)]
TARGETS = dict(zip(SHAPES, (15.0, 5.0, 2.2), strict=True))
FORMS = ("rate", "voltage")
ALPHA, SIGMA, SAMPLES, TOLERANCE = 0.2, 0.05, 7, 1e-4
Record = dict[str, Any]


def loop(layer: bptt.nn.CTRNN, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The layer's outputs, step by step."""
    h = x.new_zeros(x.shape[1], layer.hidden_size)
    size, outputs = (2 / ALPHA) ** 0.5 * sigma, []
    for driven in functional.linear(x, layer.weight_ih, layer.bias).unbind():
        if layer.form == "rate":
            new = torch.tanh(driven + functional.linear(h, layer.weight_hh))
        else:
            new = driven + functional.linear(torch.tanh(h), layer.weight_hh)
        h = (1 - ALPHA) * h + ALPHA * (new + size * torch.randn_like(h) if sigma else new)
        outputs.append(h)
    return torch.stack(outputs)


def contestants(form: str, shape: tuple[int, int, int, int]) -> dict[str, Callable[[], object]]:
    steps, rows, inputs, units = shape
    torch.manual_seed(0)
    layer = bptt.nn.CTRNN(inputs, units, alpha=ALPHA, form=form)
    rnn = bptt.nn.RNN(inputs, units)
    x, cotangent = torch.randn(steps, rows, inputs), torch.randn(steps, rows, units)
    weights, of_rnn = list(layer.parameters()), list(rnn.parameters())

    def found(y: torch.Tensor, wanted: list[Any]) -> list[torch.Tensor]:
        return [y.detach(), *torch.autograd.grad(y, wanted, cotangent)]

    for ours, loops in zip(found(layer(x)[0], weights), found(loop(layer, x, 0.0), weights), strict=True):
        error = float((ours - loops).abs().max() / loops.abs().max())
        assert error < TOLERANCE, f"{form} {shape}: differs from the loop by {error:.1e}"
    layer.sigma = SIGMA
    return {
        "loop": lambda: found(loop(layer, x, SIGMA), weights),
        "CTRNN": lambda: found(layer(x)[0], weights),
        "RNN": lambda: found(rnn(x)[0], of_rnn),
        "randn": lambda: torch.randn(steps, rows, units),
    }


def measure(samples: int, shapes: list[tuple[int, int, int, int]], guard: Guard) -> list[Record]:
    records = []
    for shape in shapes:
        for form in FORMS:
            taken = interleaved(contestants(form, shape), samples, guard)
            records.append({"form": form, "shape": shape, **vars(taken)})
            shown = ", ".join(f"{who} {1e3 * taken.median(who):.3g}" for who in taken.seconds if taken.seconds[who])
            print(f"  {form} {shape}: {shown} ms, {taken.dropped:.0%} dropped", file=sys.stderr, flush=True)
    return records


def rows_of(processes: list[list[Record]]) -> tuple[list[list[Any]], list[str]]:
    """The table, medians over the processes, and the targets that were missed."""
    rows, missed = [], []
    for same in zip(*processes, strict=True):
        form, shape = same[0]["form"], tuple(same[0]["shape"])
        row = [form, ", ".join(map(str, shape))]
        medians = [{who: statistics.median(v) for who, v in r["seconds"].items()} for r in same if r["complete"]]
        if not medians:
            rows.append([*row, *["too busy"] * 6])
            continue
        middle = {who: statistics.median(m[who] for m in medians) for who in medians[0]}
        ratio = statistics.median(m["loop"] / m["CTRNN"] for m in medians)
        of_rnn = statistics.median(m["loop"] / m["RNN"] for m in medians)
        rows.append([*row, *(f"{1e3 * seconds:.3g}" for seconds in middle.values()), f"{ratio:.2f}", f"{of_rnn:.2f}"])
        if ratio < TARGETS.get(shape, 0.0):
            missed.append(f"{form} {shape}: {ratio:.2f}x the loop, target {TARGETS[shape]}")
    return rows, missed


def main() -> int:
    args = options(__doc__, "ctrnn").parse_args()
    if args.quick:
        args.processes = 1
    if args.processes > 1:
        processes = in_processes(__file__, args.processes, "ctrnn")
    else:
        guard = Guard(slack=float("inf") if args.quick else 1.3)
        shapes = [(8, 2, 3, 4)] if args.quick else SHAPES
        processes = [measure(1 if args.quick else SAMPLES, shapes, guard)]
    rows, missed = rows_of(processes)
    headings = ["form", "T, B, I, H", "loop, ms", "CTRNN, ms", "RNN, ms", "randn, ms", "loop / CTRNN", "loop / RNN"]
    busy = any(not record["complete"] for records in processes for record in records)
    name = "ctrnn_quick" if args.quick else "ctrnn"
    missed = [] if args.quick else missed
    return report(name, headings, rows, missed, args.json, busy, records=processes)


if __name__ == "__main__":
    sys.exit(main())
