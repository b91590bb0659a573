"""How much faster does a character model train with `bptt` and `bptt.nn` than in a plain PyTorch loop with torch.nn?

Embedding of 64, 256 units, a linear readout, Python's documentation in 32 lanes, windows of 64 characters, Adam, the
gradient clipped to norm 1, the state carried. Both start from the same weights and read the same text; the largest
relative difference of their losses over the updates should stay below 1e-3. Training amplifies rounding, and for the
LSTM to more than that: `--exact` also runs the plain loop in float64, to show how far each of the two is from it. Both
train in turn, ten updates of the one and ten of the other; blocks of a busy moment are not counted.

    python benchmarks/char_model.py [--cells rnn,gru,lstm] [--updates 500] [--processes 3] [--json FILE] [--quick]
    python benchmarks/char_model.py --processes 1 --exact

How to read it: characters a second of each; the ratio is their quotient, for each process, the median of which is
judged. Targets: 1.6x for RNN, 2x for GRU, 1.05x for LSTM.
"""

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator

import torch
from support import Guard, report
from support.interleave import in_processes, interleaved, options
from torch import Tensor, nn

import bptt
from bptt.data import PYTHON_DOCS, Vocabulary, lanes, load_text

EMBEDDING, UNITS, BATCH, WINDOW = 64, 256, 32, 64
RATE, NORM = 2e-3, 1.0
BLOCK = 10  # updates a sample
SAMPLES = 15
CELLS = {"rnn": (nn.RNN, bptt.nn.RNN), "gru": (nn.GRU, bptt.nn.GRU), "lstm": (nn.LSTM, bptt.nn.LSTM)}
TARGETS = {"rnn": 1.6, "gru": 2.0, "lstm": 1.05}
DIFFERENCE = 1e-3


class Model(nn.Module):
    def __init__(self, characters: int, layer: type[nn.RNNBase]):
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.recurrent = layer(EMBEDDING, UNITS)
        self.readout = nn.Linear(UNITS, characters)

    def forward(self, inputs: Tensor, state):
        outputs, state = self.recurrent(self.embedding(inputs), state)
        return self.readout(outputs), state


def setup(characters: int, layer: type[nn.RNNBase], dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    model = Model(characters, layer).to(dtype)
    zeros = torch.zeros(1, BATCH, UNITS, dtype=dtype)
    state = (zeros, zeros.clone()) if isinstance(model.recurrent, nn.LSTM) else zeros
    return model, torch.optim.Adam(model.parameters(), lr=RATE), state


def windows(text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The lanes over and over, one window of 64 after the other; what is left at the end of a lane is not read."""
    for start in itertools.cycle(range(0, len(text) - WINDOW, WINDOW)):
        yield text[start : start + WINDOW], text[start + 1 : start + WINDOW + 1]


def plain(
    text: Tensor, characters: int, layer: type[nn.RNNBase], dtype: torch.dtype = torch.float32
) -> Iterator[Tensor]:
    """The loop that everyone writes; a loss an update."""
    model, optimizer, state = setup(characters, layer, dtype)
    for inputs, targets in windows(text):
        scores, state = model(inputs, state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def ours(text: Tensor, characters: int, layer: type[nn.RNNBase]) -> Iterator[Tensor]:
    """The same by `bptt.unroll`."""
    model, optimizer, state = setup(characters, layer)
    loss = bptt.per_step(nn.CrossEntropyLoss())
    for update in bptt.unroll(model, loss, windows(text), state, strategy=bptt.TruncatedBPTT(WINDOW)):
        nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        yield torch.as_tensor(update.mean_loss)


def block(updates: Iterator[Tensor], losses: list[Tensor]) -> Callable[[], None]:
    return lambda: losses.extend(itertools.islice(updates, BLOCK))


def apart(a: Tensor, b: Tensor) -> float:
    """The largest relative difference of two curves."""
    return float(((a - b).abs() / b).max())


def measure(
    cell: str, text: Tensor, characters: int, updates: int, samples: int, guard: Guard, exact: bool = False
) -> dict:
    curves: dict[str, list[Tensor]] = {"torch": [], "bptt": []}
    torchs, fused = CELLS[cell]
    trainings = {"torch": plain(text, characters, torchs), "bptt": ours(text, characters, fused)}
    runs = {name: block(training, curves[name]) for name, training in trainings.items()}
    found = interleaved(runs, samples, guard)
    for name, run in runs.items():
        while len(curves[name]) < updates:
            run()
    a, b = (torch.stack(curves[name][:updates]).double() for name in ("torch", "bptt"))
    difference = apart(b, a)
    print(f"  {cell}: {updates} updates, losses differ by at most {difference:.1e}", file=sys.stderr, flush=True)
    if exact:
        true = torch.stack(list(itertools.islice(plain(text, characters, torchs, torch.float64), updates)))
        shown = f"{apart(a, true):.1e} (plain loop) and {apart(b, true):.1e} (bptt)"
        print(f"  {cell}: from the plain loop in float64 by at most {shown}", file=sys.stderr, flush=True)
    return {"cell": cell, "difference": difference, "last_loss": float(a[-50:].mean()), **vars(found)}


def main() -> int:
    parser = options(__doc__, "char_model")
    parser.add_argument("--cells", default="rnn,gru,lstm")
    parser.add_argument("--updates", type=int, default=500, help="over which the losses are compared")
    parser.add_argument("--exact", action="store_true", help="the plain loop in float64 too: minutes more")
    args = parser.parse_args()
    content = load_text(PYTHON_DOCS)
    characters = len(Vocabulary.of(content))
    if args.quick or args.processes == 1:
        text = lanes(Vocabulary.of(content).encode(content), BATCH)
        guard = Guard(slack=float("inf") if args.quick else 1.3)
        samples, updates = (1, BLOCK) if args.quick else (SAMPLES, args.updates)
        processes = [
            [measure(cell, text, characters, updates, samples, guard, args.exact) for cell in args.cells.split(",")]
        ]
    else:
        processes = [r["details"]["records"][0] for r in in_processes(__file__, args.processes, "char_model")]

    rows, missed = [], []
    busy = False
    for same in zip(*processes, strict=True):
        cell = same[0]["cell"]
        quiet = [r for r in same if r["complete"] or args.quick]
        busy |= len(quiet) < len(same)
        if not quiet:
            rows.append([cell, *["too busy"] * 8])
            continue
        rates = {
            who: [BLOCK * WINDOW * BATCH / statistics.median(r["seconds"][who]) for r in quiet]
            for who in ("torch", "bptt")
        }
        ratios = [b / a for a, b in zip(rates["torch"], rates["bptt"], strict=True)]
        ratio = statistics.median(ratios)
        if not args.quick and ratio < TARGETS[cell]:
            missed.append(f"{cell}: {ratio:.2f} times the plain loop, target {TARGETS[cell]}")
        thousands = [f"{statistics.median(rates[who]) / 1e3:.0f}k" for who in ("torch", "bptt")]
        spread, difference = " ".join(f"{r:.2f}" for r in ratios), max(r["difference"] for r in same)
        if not difference < DIFFERENCE:
            missed.append(f"{cell}: the losses differ by {difference:.1e} of the loss, target {DIFFERENCE}")
        kept = min(len(values) for r in quiet for values in r["seconds"].values())
        dropped = f"{statistics.mean(r['dropped'] for r in same):.0%}"
        target = f">= {TARGETS[cell]}"
        rows.append([cell, *thousands, f"{ratio:.2f}", spread, target, f"{difference:.1e}", kept, dropped])
    headings = ["cell", "plain loop, characters/s", "bptt, characters/s", "ratio", "processes", "target"]
    headings += ["losses differ by", "samples", "dropped"]
    name = "char_model_quick" if args.quick else "char_model"
    return report(name, headings, rows, missed, args.json, busy, records=processes, characters=characters)


if __name__ == "__main__":
    sys.exit(main())
