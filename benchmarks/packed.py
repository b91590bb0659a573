"""How much faster is a PackedSequence through `bptt.nn` than through torch.nn?

32 sequences of T/2 to T steps, I = 128, H = 256; forward and backward with the gradients of the inputs and of all
weights. torch.nn takes the padded tensor through its fast path and a PackedSequence through a slow one, so the padded
time is shown as well: it is what users resort to, where wrong last states and steps spent on padding don't matter.
Gradients are asserted equal to torch's, on short sequences.

    python benchmarks/packed.py [--steps 1000] [--cells rnn,gru,lstm] [--processes 3] [--json FILE] [--quick]

How to read it: the times of one run, and their ratios. Targets at T = 1000, for the median of the processes: 20x for
LSTM and GRU, 4x for RNN. torch's packed time grows faster than T: with a smaller --steps the ratios are smaller, and
nothing is judged.
"""

import statistics
import sys

import torch
from support.interleave import in_processes, interleaved, options
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
from support import Guard, report

ROWS, INPUTS, UNITS = 32, 128, 256
STEPS, SAMPLES = 1000, 7
CELLS = {"rnn": (nn.RNN, bptt.nn.RNN), "gru": (nn.GRU, bptt.nn.GRU), "lstm": (nn.LSTM, bptt.nn.LSTM)}
TARGETS = {"rnn": 4.0, "gru": 20.0, "lstm": 20.0}
TOLERANCE = 1e-4


class Job:
    """Forward and backward of a layer on the sequences, packed or padded."""

    def __init__(self, steps: int):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.linspace(steps, steps // 2, ROWS).long()
        padded = torch.randn(steps, ROWS, INPUTS, generator=generator)
        packed = pack_padded_sequence(padded, lengths)
        self.padded = padded.requires_grad_()
        self.data, self.sizes = packed.data.detach().requires_grad_(), packed.batch_sizes
        self.cotangent = torch.randn(len(self.data), UNITS, generator=generator)
        self.padded_cotangent = torch.randn(steps, ROWS, UNITS, generator=generator)

    def run_packed(self, layer: nn.RNNBase) -> tuple[Tensor, ...]:
        outputs, _ = layer(PackedSequence(self.data, self.sizes))
        return torch.autograd.grad(outputs.data, [self.data, *layer.parameters()], self.cotangent)

    def run_padded(self, layer: nn.RNNBase) -> tuple[Tensor, ...]:
        outputs, _ = layer(self.padded)
        return torch.autograd.grad(outputs, [self.padded, *layer.parameters()], self.padded_cotangent)


def measure(cell: str, job: Job, samples: int, guard: Guard) -> dict:
    torchs, ours = CELLS[cell]
    torch.manual_seed(0)
    theirs = torchs(INPUTS, UNITS)
    mine = ours(INPUTS, UNITS)
    mine.load_state_dict(theirs.state_dict())
    short = Job(16)
    for a, b in zip(short.run_packed(theirs), short.run_packed(mine), strict=True):
        assert (a - b).abs().max() < TOLERANCE * a.abs().max(), f"{cell}: gradients differ from torch's"
    runs = {
        "torch": lambda: job.run_packed(theirs),
        "torch padded": lambda: job.run_padded(theirs),
        "bptt": lambda: job.run_packed(mine),
    }
    found = interleaved(runs, samples, guard)
    shown = ", ".join(f"{who} {found.median(who):.3g} s" for who in runs if found.seconds[who])
    print(f"  {cell}: {shown}", file=sys.stderr, flush=True)
    return {"cell": cell, **vars(found)}


def main() -> int:
    parser = options(__doc__, "packed")
    parser.add_argument("--steps", type=int, default=STEPS, help="T, the longest sequence; the shortest has T/2")
    parser.add_argument("--cells", default="rnn,gru,lstm")
    args = parser.parse_args()
    if args.quick:
        args.steps = 16
    if args.quick or args.processes == 1:
        guard, job = Guard(slack=float("inf") if args.quick else 1.3), Job(args.steps)
        samples = 1 if args.quick else SAMPLES
        processes = [[measure(cell, job, samples, guard) for cell in args.cells.split(",")]]
    else:
        processes = in_processes(__file__, args.processes, "packed")

    judged = args.steps >= STEPS
    rows, missed = [], []
    busy = False
    for same in zip(*processes, strict=True):
        cell = same[0]["cell"]
        quiet = [r for r in same if r["complete"]]
        busy |= len(quiet) < len(same)
        if not quiet:
            rows.append([cell, args.steps, *["too busy"] * 9])
            continue
        found = {who: [statistics.median(r["seconds"][who]) for r in quiet] for who in quiet[0]["seconds"]}
        ratios = [a / b for a, b in zip(found["torch"], found["bptt"], strict=True)]
        padded = [a / b for a, b in zip(found["torch padded"], found["bptt"], strict=True)]
        ratio = statistics.median(ratios)
        if judged and ratio < TARGETS[cell]:
            missed.append(f"{cell}: {ratio:.1f} times torch's packed path, target {TARGETS[cell]}")
        seconds = [f"{statistics.median(values):.3g}" for values in found.values()]
        kept = min(len(values) for r in quiet for values in r["seconds"].values())
        dropped = f"{statistics.mean(r['dropped'] for r in same):.0%}"
        target = f">= {TARGETS[cell]:g}" if judged else "-"
        spread = " ".join(f"{r:.1f}" for r in ratios)
        row = [cell, args.steps, *seconds, f"{ratio:.1f}", spread, target, f"{statistics.median(padded):.2f}"]
        rows.append([*row, kept, dropped])
    headings = ["cell", "T", "torch packed, s", "torch padded, s", "bptt packed, s", "torch packed / bptt", "processes"]
    headings += ["target", "torch padded / bptt packed", "samples", "dropped"]
    name = "packed" if judged else "packed_quick"
    return report(name, headings, rows, missed, args.json, busy, records=processes)


if __name__ == "__main__":
    sys.exit(main())
