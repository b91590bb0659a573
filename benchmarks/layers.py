"""How fast are `bptt.nn.RNN`, `GRU` and `LSTM` against torch.nn's, JAX's `lax.scan`, and the machine's sgemm?

One layer of fixed weights on random inputs; "both" is forward and backward with the gradients of the inputs and of all
weights, "forward" is under no_grad. All contestants run in turn in one loop; samples of a busy moment are dropped, and
every gradient is asserted equal to torch's (1e-4 of the largest entry) before anything is timed. JAX is the fastest of
several versions of the same layer (support/scan.py), chosen for each shape at the smallest T. sgemm is torch.mm of 2048
x 2048 matrices, in the same loop. A cell whose torch.nn run takes over 20 s is left out.

    python benchmarks/layers.py [--steps 64,256,1024] [--cells rnn,gru,lstm] [--processes 3] [--json FILE] [--quick]

How to read it: "torch.nn / bptt" is how many times faster we are; "best rival / bptt" takes the faster of torch.nn and
JAX, once for each process; "of sgemm" is the rate of our multiplications and additions over that of torch.mm, "of
peak" over that of a loop of independent multiply-adds (nan without a C++ compiler; see peak.py). With several processes
a figure is their median, since torch's own LSTM varies by 1.5x from process to process.

Targets, all of "both": geometric mean over the table RNN >= 3x torch.nn, GRU >= 3x (>= 2x where B >= 8), LSTM >= 1.15x;
no cell below 0.9x of the best rival in all processes; RNN and GRU with H >= 256, B >= 32 at >= 85 % of sgemm; at
>= 68 % of the peak at (B, I, H) = (32, 128, 256), 74 % at (64, 256, 512) and (128, 512, 1024).
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from support.interleave import geometric_mean, in_processes, interleaved, options
from support.peak import gflops
from torch import nn

import bptt
from support import Guard, report, scan, seconds, table

SHAPES = [(1, 64, 64), (1, 256, 256), (8, 64, 128), (16, 64, 128), (32, 128, 256), (64, 256, 512), (128, 512, 1024)]
CELLS = {"rnn": (nn.RNN, bptt.nn.RNN), "gru": (nn.GRU, bptt.nn.GRU), "lstm": (nn.LSTM, bptt.nn.LSTM)}
LIMIT = 20.0  # seconds of torch.nn
SAMPLES = 7
SIDE = 2048
MEAN_TARGETS = {"rnn": 3.0, "gru": 3.0, "lstm": 1.15}
GRU_ROWS_TARGET, WORST_TARGET, SGEMM_TARGET = 2.0, 0.9, 0.85
PEAK_TARGETS = {(32, 128, 256): 0.68, (64, 256, 512): 0.74, (128, 512, 1024): 0.74}
TOLERANCE = 1e-4
Record = dict[str, Any]


def operations(cell: str, steps: int, rows: int, inputs: int, units: int) -> float:
    """Multiplications and additions of the products of a forward and backward pass."""
    return 6.0 * steps * rows * scan.GATES[cell] * units * (inputs + units)


def shortest(run: Callable[[], object]) -> float:
    """Seconds of the best of up to five runs after a first one, which compiles; of fewer where runs take long."""
    run()
    found: list[float] = []
    while len(found) < 5 and sum(found) < 0.5:
        found.append(seconds(run))
    return min(found)


class Contest:
    """The contestants of one cell at one length; `writings` holds JAX's best writing of each shape."""

    def __init__(self, cell: str, steps: int, shape: tuple[int, int, int], writings: dict[Any, Any], jax: bool):
        self.cell, self.shape, self.writings = cell, shape, writings
        rows, inputs, units = shape
        torch.manual_seed(0)
        self.torchs, ours = CELLS[cell]
        self.torchs = self.torchs(inputs, units)
        self.ours = ours(inputs, units)
        self.ours.load_state_dict(self.torchs.state_dict())
        self.x = torch.randn(steps, rows, inputs, requires_grad=True)
        self.cotangent = torch.randn(steps, rows, units)
        self.jax = jax

    def both(self, layer: nn.RNNBase) -> list[torch.Tensor]:
        y, _ = layer(self.x)
        return [y.detach(), *torch.autograd.grad(y, [self.x, *layer.parameters()], self.cotangent)]

    def forward(self, layer: nn.RNNBase) -> None:
        with torch.no_grad():
            layer(self.x)

    def check(self, found: list[Any], who: str) -> None:
        """Outputs and gradients equal to torch's. The comparison is with the largest entry of each."""
        names = ["outputs", "x", *(name for name, _ in self.torchs.named_parameters())]
        for name, ours, torchs in zip(names, found, self.expected, strict=True):
            ours = ours if isinstance(ours, torch.Tensor) else torch.from_numpy(scan.to_numpy(ours))
            error = float((ours - torchs).abs().max() / torchs.abs().max())
            assert error < TOLERANCE, f"{who} {self.cell} {self.shape}: {name} differs from torch's by {error:.1e}"

    def runs(self) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]], str]:
        """The contestants of "both" and of "forward", checked, and the writings of JAX's."""
        self.expected = self.both(self.torchs)
        self.check(self.both(self.ours), "bptt")
        both = {"torch": lambda: self.both(self.torchs), "bptt": lambda: self.both(self.ours)}
        forward = {"torch": lambda: self.forward(self.torchs), "bptt": lambda: self.forward(self.ours)}
        writing = ""
        if self.jax:
            forward["jax"], both["jax"], writing = self.fastest_jax()
        del self.expected
        return both, forward, writing

    def fastest_jax(self) -> tuple[Callable[[], object], Callable[[], object], str]:
        known = self.writings.get((self.cell, self.shape))
        built = {
            writing: scan.contestants(self.cell, writing, self.torchs, self.x, self.cotangent)
            for writing in (set(known) if known else scan.WRITINGS)
        }
        for writing, (_, both) in built.items():
            self.check(scan.as_torch(both()), f"JAX ({writing})")
        if not known:
            known = tuple(min(built, key=lambda w, i=i: shortest(built[w][i])) for i in (0, 1))
            self.writings[self.cell, self.shape] = known
        return built[known[0]][0], built[known[1]][1], f"forward {known[0]}; both {known[1]}"


def measure(cell: str, steps: int, shape: tuple[int, int, int], writings: dict[Any, Any], args: Any) -> list[Record]:
    contest = Contest(cell, steps, shape, writings, jax=args.jax)
    first = seconds(lambda: contest.both(contest.torchs))
    about = {"cell": cell, "T": steps, "shape": shape}
    if first > LIMIT:
        print(f"  {cell} T={steps} {shape}: left out, torch.nn takes {first:.0f} s", file=sys.stderr, flush=True)
        return [{**about, "left_out": first}]
    both, forward, writing = contest.runs()
    a, b, out = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE), torch.empty(SIDE, SIDE)
    both["sgemm"] = lambda: torch.mm(a, b, out=out)
    records = []
    for name, runs in (("both", both), ("forward", forward)):
        samples = interleaved(runs, args.samples, args.guard)
        records.append({**about, "pass": name, "jax": writing, "peak": args.peak, **vars(samples)})
        shown = ", ".join(f"{who} {1e3 * samples.median(who):.3g}" for who in runs if samples.seconds[who])
        print(
            f"  {cell} T={steps} {shape} {name}: {shown} ms, {samples.dropped:.0%} dropped", file=sys.stderr, flush=True
        )
    return records


def figures(record: Record) -> dict[str, float]:
    """Medians in seconds, ratios, and the share of sgemm, of one record."""
    found = {who: statistics.median(values) for who, values in record["seconds"].items()}
    rivals = {who: found[who] / found["bptt"] for who in ("torch", "jax") if who in found}
    found |= {f"{who}/bptt": ratio for who, ratio in rivals.items()}
    found["best"] = min(rivals.values())
    if "sgemm" in found:
        rate = operations(record["cell"], record["T"], *record["shape"]) / found["bptt"]
        found["of sgemm"] = rate / (2.0 * SIDE**3 / found["sgemm"])
        found["of peak"] = 1e-9 * rate / record["peak"] if record["peak"] else float("nan")
    return found


def key(record: Record) -> tuple[Any, ...]:
    return record["cell"], record["T"], tuple(record["shape"]), record["pass"]


def rows_of(processes: list[list[Record]], which: str, jax: bool) -> list[list[Any]]:
    """The table of one pass: medians over the processes, and each process's ratio to the best rival."""
    rows = []
    for cell, steps, shape, name in dict.fromkeys(key(r) for p in processes for r in p if "pass" in r):
        if name != which:
            continue
        same = [r for p in processes for r in p if "pass" in r and key(r) == (cell, steps, shape, name)]
        quiet = [r for r in same if r["complete"]]
        row = [cell, steps, ", ".join(map(str, shape))]
        if not quiet:
            rows.append([*row, *["too busy"] * (10 if which == "both" else 8)])
            continue
        all_figures = [figures(record) for record in quiet]

        def median(figure: str, of: list[dict[str, float]] = all_figures) -> float:
            return statistics.median(f[figure] for f in of)

        milliseconds = [f"{1e3 * median(who):.3g}" if who != "jax" or jax else "-" for who in ("torch", "jax", "bptt")]
        ratios = [f"{median('torch/bptt'):.2f}", f"{median('jax/bptt'):.2f}" if jax else "-"]
        best = " ".join(f"{f['best']:.2f}" for f in all_figures)
        share = [f"{median(of):.2f}" for of in ("of sgemm", "of peak")] if which == "both" else []
        kept = min(len(values) for r in quiet for values in r["seconds"].values())
        dropped = statistics.mean(r["dropped"] for r in same)
        rows.append([*row, *milliseconds, *ratios, best, *share, kept, f"{dropped:.0%}"])
    return rows


def judge(processes: list[list[Record]]) -> tuple[list[str], list[str]]:
    """What was found over the whole table of "both", and the targets that were missed."""
    per_process = [
        {key(r): figures(r) for r in p if r.get("pass") == "both" and r["complete"]} for p in processes
    ]  # fmt: skip
    said, missed = [], []
    for cell, target in MEAN_TARGETS.items():
        for least_rows, aim in [(1, target), *([(8, GRU_ROWS_TARGET)] if cell == "gru" else [])]:
            chosen = [{k: f for k, f in p.items() if k[0] == cell and k[2][0] >= least_rows} for p in per_process]
            if not all(chosen):
                continue
            means = [geometric_mean(f["torch/bptt"] for f in p.values()) for p in chosen]
            line = f"{cell}, B >= {least_rows}: geometric mean {statistics.median(means):.2f}x torch.nn"
            said.append(f"{line} (processes: {' '.join(f'{m:.2f}' for m in means)}; target {aim})")
            if statistics.median(means) < aim:
                missed.append(f"{line}, target {aim}")
    for k in dict.fromkeys(k for p in per_process for k in p):
        found = [p[k] for p in per_process if k in p]
        if max(f["best"] for f in found) < WORST_TARGET:
            missed.append(f"{k[0]} T={k[1]} {k[2]}: {max(f['best'] for f in found):.2f}x of the best rival, at best")
        of_peak, aim = statistics.median(f["of peak"] for f in found), PEAK_TARGETS.get(k[2], 0.0)
        if of_peak < aim:
            missed.append(f"{k[0]} T={k[1]} {k[2]}: {of_peak:.2f} of the processor's peak, target {aim}")
        share = statistics.median(f["of sgemm"] for f in found)
        if k[0] != "lstm" and k[2][0] >= 32 and k[2][2] >= 256 and share < SGEMM_TARGET:
            missed.append(f"{k[0]} T={k[1]} {k[2]}: {share:.2f} of the sgemm rate, target {SGEMM_TARGET}")
    return said, missed


def main() -> int:
    parser = options(__doc__, "layers")
    parser.add_argument("--steps", default="64,256,1024", help="values of T")
    parser.add_argument("--cells", default="rnn,gru,lstm")
    parser.add_argument("--shapes", default="", help='such as "8,64,128 32,128,256"; default: all seven')
    args = parser.parse_args()
    cells, all_steps = args.cells.split(","), [int(steps) for steps in args.steps.split(",")]
    shapes = [tuple(map(int, shape.split(","))) for shape in args.shapes.split()] or SHAPES
    if args.quick:
        args.processes, all_steps, shapes = 1, [8], SHAPES[:1]
    args.samples = 1 if args.quick else SAMPLES
    args.jax = scan.version() is not None and not args.quick

    if args.processes > 1:
        processes = in_processes(__file__, args.processes, "layers")
    else:
        args.peak = gflops(torch.get_num_threads())
        args.guard = Guard(slack=float("inf") if args.quick else 1.3)
        writings: dict[Any, Any] = {}
        records = [
            record
            for cell in cells
            for shape in shapes
            for steps in sorted(all_steps)
            for record in measure(cell, steps, shape, writings, args)
        ]
        processes = [records]
    said, missed = ([], []) if args.quick else judge(processes)

    headings = ["cell", "T", "B, I, H", "torch.nn, ms", "JAX, ms", "bptt, ms", "torch.nn / bptt", "JAX / bptt"]
    headings += ["best rival / bptt"]
    print("Forward:\n\n" + table([*headings, "samples", "dropped"], rows_of(processes, "forward", args.jax)))
    print("\nForward and backward:\n")
    details = {"records": processes, "jax": scan.version(), "jax_threads": scan.threads() if args.jax else None}
    name = "layers_quick" if args.quick else "layers"
    rows = rows_of(processes, "both", args.jax)
    busy = any(not r["complete"] for p in processes for r in p if "pass" in r)
    status = report(
        name, [*headings, "of sgemm", "of peak", "samples", "dropped"], rows, missed, args.json, busy, **details
    )
    print(*said, sep="\n")
    if not args.jax and not args.quick:
        print(scan.MISSING)
    for cell, steps, shape in {(r["cell"], r["T"], tuple(r["shape"])) for p in processes for r in p if "left_out" in r}:
        print(f"{cell} T={steps} {shape}: left out, torch.nn takes over {LIMIT:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
