"""Does a call of `bptt.nn` take the same time whatever is asked of it, and whatever the numbers are?

Forward and backward of one layer, T = 256, plain and with: a cotangent weight for each step, for each step and row;
resets; both; cotangents that fade over the whole sequence; cotangents too small for normal numbers; saturated inputs.
All of them run in turn in one loop. Then a step of `unroll` on bptt.nn.LSTM (64 -> 128, batch 16, SGD): ARTBP with a
draw after every step, against TruncatedBPTT(50), over streams of 2000 steps, so that ARTBP's windows, of 50 steps on
average, are of all lengths. torch.nn.LSTM, which has to be called step by step there, is shown for comparison.

    python benchmarks/constant_time.py [--cells rnn,gru,lstm] [--processes 3] [--json FILE] [--quick]

How to read it: each ratio is to the plain call of the same layer and shape, or to TruncatedBPTT(50). Targets, the
median of the processes: 1.1 for weights and resets, 1.2 for small cotangents and saturation, 1.2 for ARTBP.
"""

import statistics
import sys
from collections.abc import Callable

import torch
from support.interleave import in_processes, interleaved, options
from torch import nn

import bptt
from support import Guard, report

SHAPES = [(16, 64, 128), (32, 128, 256)]
STEPS, STREAM, SAMPLES = 256, 2000, 15
CELLS = {"rnn": bptt.nn.RNN, "gru": bptt.nn.GRU, "lstm": bptt.nn.LSTM}
TARGETS = {
    "weight (T,)": 1.1,
    "weight (T, B)": 1.1,
    "is_start": 1.1,
    "weight and is_start": 1.1,
    "fading cotangents": 1.2,
    "subnormal cotangents": 1.2,
    "saturated inputs": 1.2,
    "ARTBP, every=1": 1.2,
}


def calls(cell: str, shape: tuple[int, int, int], steps: int) -> dict[str, Callable[[], object]]:
    rows, inputs, units = shape
    torch.manual_seed(0)
    layer = CELLS[cell](inputs, units)
    x = torch.randn(steps, rows, inputs, requires_grad=True)
    large = (100 * x).detach().requires_grad_()
    dy = torch.randn(steps, rows, units)
    last = torch.zeros_like(dy)
    last[-1] = dy[-1]
    weight = torch.where(torch.rand(steps, rows) < 0.02, 0.0, 1 / 0.98)
    start = torch.rand(steps, rows) < 0.02

    def run(inputs=x, cotangent=dy, **keywords) -> Callable[[], object]:
        def call() -> object:
            y, _ = layer(inputs, **keywords)
            return torch.autograd.grad(y, [inputs, *layer.parameters()], cotangent)

        return call

    return {
        "plain": run(),
        "weight (T,)": run(cotangent_weight=weight[:, 0]),
        "weight (T, B)": run(cotangent_weight=weight),
        "is_start": run(is_start=start),
        "weight and is_start": run(cotangent_weight=weight, is_start=start),
        "fading cotangents": run(cotangent=last),
        "subnormal cotangents": run(cotangent=1e-39 * dy),
        "saturated inputs": run(inputs=large),
    }


def streams(steps: int) -> dict[str, Callable[[], object]]:
    """A stream of `steps` steps by each strategy, with an optimiser's step after each window."""
    torch.manual_seed(0)
    x, targets = torch.randn(steps, 16, 64), torch.randn(steps, 16, 128)
    loss = bptt.per_step(nn.MSELoss())

    def run(layer: nn.LSTM, strategy) -> Callable[[], object]:
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(0)  # goes on: other windows in every sample

        def call() -> None:
            for _ in bptt.unroll(layer, loss, [(x, targets)], strategy=strategy, generator=generator):
                optimizer.step()
                optimizer.zero_grad()

        return call

    artbp = bptt.ARTBP(law=bptt.PolynomialLaw(alpha=3, mean_length=50), every=1)
    return {
        "plain": run(bptt.nn.LSTM(64, 128), bptt.TruncatedBPTT(50)),
        "ARTBP, every=1": run(bptt.nn.LSTM(64, 128), artbp),
        "torch.nn, TruncatedBPTT(50)": run(nn.LSTM(64, 128), bptt.TruncatedBPTT(50)),
        "torch.nn, ARTBP, every=1": run(nn.LSTM(64, 128), artbp),
    }


def measure(cells: list[str], quick: bool) -> list[dict]:
    guard = Guard(slack=float("inf") if quick else 1.3)
    samples, steps, stream = (1, 8, 100) if quick else (SAMPLES, STEPS, STREAM)
    contests = [(f"{cell} {shape}, T={steps}", calls(cell, shape, steps)) for cell in cells for shape in SHAPES]
    contests.append((f"unroll, {stream} steps", streams(stream)))
    records = []
    for name, runs in contests:
        found = interleaved(runs, samples, guard)
        records.append({"name": name, **vars(found)})
        print(f"  {name}: dropped {found.dropped:.0%}", file=sys.stderr, flush=True)
    return records


def main() -> int:
    parser = options(__doc__, "constant_time")
    parser.add_argument("--cells", default="rnn,gru,lstm")
    args = parser.parse_args()
    if args.quick or args.processes == 1:
        processes = [measure(args.cells.split(","), args.quick)]
    else:
        processes = in_processes(__file__, args.processes, "constant_time")

    rows, missed = [], []
    busy = False
    for same in zip(*processes, strict=True):
        quiet = [r for r in same if r["complete"]]
        busy |= len(quiet) < len(same)
        dropped = f"{statistics.mean(r['dropped'] for r in same):.0%}"
        for call in same[0]["seconds"] if quiet else []:
            found = [statistics.median(r["seconds"][call]) for r in quiet]
            ratios = [f / statistics.median(r["seconds"]["plain"]) for f, r in zip(found, quiet, strict=True)]
            ratio, target = statistics.median(ratios), TARGETS.get(call)
            if target and ratio > target and not args.quick:
                missed.append(f"{same[0]['name']}, {call}: {ratio:.2f} times the plain time, target {target}")
            spread = " ".join(f"{r:.2f}" for r in ratios)
            milliseconds = f"{1e3 * statistics.median(found):.3g}"
            kept = min(len(r["seconds"][call]) for r in quiet)
            aim = f"<= {target}" if target else "-"
            rows.append([same[0]["name"], call, milliseconds, f"{ratio:.2f}", spread, aim, kept, dropped])
        if not quiet:
            rows.append([same[0]["name"], *["too busy"] * 6, dropped])
    headings = ["layer", "call", "ms", "ratio", "processes", "target", "samples", "dropped"]
    name = "constant_time_quick" if args.quick else "constant_time"
    return report(name, headings, rows, missed, args.json, busy, records=processes)


if __name__ == "__main__":
    sys.exit(main())
