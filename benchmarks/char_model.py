"""How much faster does a character model train with `bptt` and `bptt.nn` than in a plain PyTorch loop with torch.nn?

Embedding of 64, 256 units, a linear readout, Python's documentation in 32 lanes, windows of 64 characters, Adam, the
gradient clipped to norm 1, the state carried. Ours passes the embedding to the layer, which looks up the gates of a
character instead of its input. The two train in turn, ten updates each; blocks measured at a busy moment don't count.

Both start from the same weights and read the same text, so their losses can be compared, by the largest relative
difference over the updates: with Adam, and with plain SGD at rate 0.5. Adam amplifies rounding, for the LSTM from 1e-7
to several 1e-3 within 500 updates: `--exact` also runs the plain loop in float64, and shows that the plain loop in
float32 is as far away from that. So SGD's curve is judged: the difference must be below 1e-3.

    python benchmarks/char_model.py [--cells rnn,gru,lstm] [--updates 500] [--processes 3] [--json FILE] [--quick]
    python benchmarks/char_model.py --processes 1 --exact

How to read it: each one's characters per second; the ratio is their quotient in each process, and the median over
processes is judged. Targets: 1.6x for RNN, 2x for GRU, 1.05x for LSTM. Then how far the losses differ with either
optimiser.
"""

import itertools
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from support.interleave import in_processes, interleaved, options
from torch import Tensor, nn

import bptt
from bptt.data import PYTHON_DOCS, Vocabulary, lanes, load_text
from support import Guard, report

EMBEDDING, UNITS, BATCH, WINDOW = 64, 256, 32, 64
NORM = 1.0
OPTIMIZERS = {"adam": lambda p: torch.optim.Adam(p, lr=2e-3), "sgd": lambda p: torch.optim.SGD(p, lr=0.5)}
BLOCK = 10  # updates per sample
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
        outputs, state = self.hidden(inputs, state)
        return self.readout(outputs), state

    def hidden(self, inputs: Tensor, state):
        return self.recurrent(self.embedding(inputs), state)


class Ours(Model):
    def hidden(self, inputs: Tensor, state):
        return self.recurrent(inputs, state, embedding=self.embedding.weight)


def setup(model: Callable[..., Model], characters: int, layer: type[nn.RNNBase], optimizer: str, dtype: torch.dtype):
    torch.manual_seed(0)
    model = model(characters, layer).to(dtype)
    zeros = torch.zeros(1, BATCH, UNITS, dtype=dtype)
    state = (zeros, zeros.clone()) if isinstance(model.recurrent, nn.LSTM) else zeros
    return model, OPTIMIZERS[optimizer](model.parameters()), state


def windows(text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The lanes over and over, one window of 64 after the other; what is left at the end of a lane is not read."""
    for start in itertools.cycle(range(0, len(text) - WINDOW, WINDOW)):
        yield text[start : start + WINDOW], text[start + 1 : start + WINDOW + 1]


def plain(
    text: Tensor, characters: int, cell: str, optimizer: str, dtype: torch.dtype = torch.float32
) -> Iterator[Tensor]:
    """The loop that everyone writes; one loss per update."""
    model, optimizer, state = setup(Model, characters, CELLS[cell][0], optimizer, dtype)
    for inputs, targets in windows(text):
        scores, state = model(inputs, state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def ours(text: Tensor, characters: int, cell: str, optimizer: str) -> Iterator[Tensor]:
    """The same by `bptt.unroll`."""
    model, optimizer, state = setup(Ours, characters, CELLS[cell][1], optimizer, torch.float32)
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


def curve(training: Iterator[Tensor], updates: int, begun: Iterable[Tensor] = ()) -> Tensor:
    """The losses of that many updates, in float64."""
    return torch.stack(list(itertools.islice(itertools.chain(begun, training), updates))).double()


def measure(
    cell: str, text: Tensor, characters: int, updates: int, samples: int, guard: Guard, exact: bool = False
) -> dict:
    begun: dict[str, list[Tensor]] = {"torch": [], "bptt": []}
    given = (text, characters, cell)
    trainings = {"torch": plain(*given, "adam"), "bptt": ours(*given, "adam")}
    runs = {name: block(training, begun[name]) for name, training in trainings.items()}
    for run in runs.values():
        run()  # the first updates of a process load things
    found = interleaved(runs, samples, guard)
    a, b = (curve(trainings[name], updates, begun[name]) for name in ("torch", "bptt"))
    sgd = apart(curve(ours(*given, "sgd"), updates), curve(plain(*given, "sgd"), updates))
    differences = {"sgd": sgd, "adam": apart(b, a)}
    shown = ", ".join(f"{difference:.1e} ({name})" for name, difference in differences.items())
    print(f"  {cell}: {updates} updates, losses differ by at most {shown}", file=sys.stderr, flush=True)
    if exact:
        true = curve(plain(*given, "adam", torch.float64), updates)
        shown = f"{apart(a, true):.1e} (plain loop) and {apart(b, true):.1e} (bptt)"
        print(f"  {cell}: with Adam from the plain loop in float64 by at most {shown}", file=sys.stderr, flush=True)
    return {"cell": cell, "differences": differences, "last_loss": float(a[-50:].mean()), **vars(found)}


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
        processes = in_processes(__file__, args.processes, "char_model")

    rows, missed = [], []
    busy = False
    for same in zip(*processes, strict=True):
        cell = same[0]["cell"]
        quiet = [r for r in same if r["complete"] or args.quick]
        busy |= len(quiet) < len(same)
        if not quiet:
            rows.append([cell, *["too busy"] * 9])
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
        spread = " ".join(f"{r:.2f}" for r in ratios)
        differences = {name: max(r["differences"][name] for r in same) for name in ("sgd", "adam")}
        if not differences["sgd"] < DIFFERENCE:
            missed.append(f"{cell}: the losses differ by {differences['sgd']:.1e} of the loss, target {DIFFERENCE}")
        kept = min(len(values) for r in quiet for values in r["seconds"].values())
        dropped = f"{statistics.mean(r['dropped'] for r in same):.0%}"
        target = f">= {TARGETS[cell]}"
        apart_by = [f"{difference:.1e}" for difference in differences.values()]
        rows.append([cell, *thousands, f"{ratio:.2f}", spread, target, *apart_by, kept, dropped])
    headings = ["cell", "plain loop, characters/s", "bptt, characters/s", "ratio", "processes", "target"]
    headings += ["losses differ by (SGD)", "(Adam)", "samples", "dropped"]
    name = "char_model_quick" if args.quick else "char_model"
    return report(name, headings, rows, missed, args.json, busy, records=processes, characters=characters)


if __name__ == "__main__":
    sys.exit(main())
