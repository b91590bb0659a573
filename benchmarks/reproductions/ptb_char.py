"""Does random truncation with factors help a character model, and what does carrying the state do?

Tallec & Ollivier 2017 (https://arxiv.org/abs/1705.08209; code ctallec/bigart) train a network on the characters of the
Penn Treebank, truncated every 50 characters or by ARTBP with segments of 50 on average. Here an LSTM is trained by each
of the two, with the state carried from segment to segment, and with every segment begun from zeros, as we read their
code.

    python benchmarks/reproductions/ptb_char.py FILE           # 128 units, 2 epochs: minutes
    python benchmarks/reproductions/ptb_char.py FILE --full    # their size: 1000 units, 20 epochs, five seeds: days
    python benchmarks/reproductions/ptb_char.py python-docs    # Python's own documentation instead

The Penn Treebank is licensed and not shipped: FILE is your own copy as one UTF-8 text. Its last tenth is for
validation, with the state carried. No target is judged: the published figures (from the authors' logs: validation bits
per character after 20 epochs, five runs, on their split and with a cell that isn't a plain LSTM) stand beside.
`--quick` is a trial run.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bptt
from bptt.data import Vocabulary, lanes, load_text, split

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import report

LENGTH, EMBEDDING, CHUNK = 50, 64, 1000
PUBLISHED = {"TBPTT(50)": "1.473 ± 0.003", "ARTBP(50)": "1.436 ± 0.005"}
STRATEGIES: dict[str, Any] = {
    "TBPTT(50)": bptt.TruncatedBPTT(LENGTH),
    "ARTBP(50)": bptt.ARTBP(bptt.PolynomialLaw(alpha=3, mean_length=LENGTH)),
}
LOSS = bptt.per_step(nn.CrossEntropyLoss())
HOW = "give the text of the Penn Treebank, which is licensed, as a UTF-8 file of your own; or python-docs"


class Setting(NamedTuple):
    """steps: of each lane at most, an epoch; None is all of them."""

    hidden: int
    batch: int
    rate: float
    epochs: int
    seeds: int
    steps: int | None = None


SMALL, FULL = Setting(128, 32, 2e-3, 2, 1), Setting(1000, 64, 1e-4, 20, 5)
QUICK = Setting(8, 4, 2e-3, 1, 1, steps=150)


class CharModel(nn.Module):
    """Embedding, LSTM, decoder: `(ids, state) -> (scores, state)`."""

    def __init__(self, characters: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.lstm = bptt.nn.LSTM(EMBEDDING, hidden)
        self.decoder = nn.Linear(hidden, characters)

    def forward(self, ids: Tensor, state: Any, cotangent_weight: Tensor | None = None) -> tuple[Tensor, Any]:
        hidden, state = self.lstm(self.embedding(ids), state, cotangent_weight=cotangent_weight)
        return self.decoder(hidden), state

    def zeros(self, batch: int) -> tuple[Tensor, Tensor]:
        """The state that a text begins with."""
        state = torch.zeros(1, batch, self.lstm.hidden_size)
        return state, state.clone()


@dataclass(frozen=True)
class Drawn:
    """A strategy whose windows were drawn before, so that the stream can begin each of them from zeros."""

    given: Any
    steps: int
    seed: int

    def starts(self) -> Tensor:
        """Whether a window begins, by step."""
        flags = torch.zeros(self.steps, dtype=torch.bool)
        flags[[window.start for window in self.windows(lambda t: int(min(t, self.steps)), None)]] = True
        return flags

    def windows(self, upto: Any, draw: Any) -> Iterator[Any]:
        """Those of the strategy, from the seed alone."""
        generator = torch.Generator().manual_seed(self.seed)
        return self.given.windows(upto, lambda: torch.rand((), generator=generator).item())

    def divisor(self, window: Any) -> float:
        """That of the strategy."""
        return self.given.divisor(window)


def bits(model: CharModel, read: Tensor) -> float:
    """Bits per character of `read`, lanes of ids (T, B), the state carried."""
    with torch.no_grad():
        found = bptt.evaluate(model, LOSS, [(read[:-1], read[1:])], model.zeros(read.shape[1]))
    return found.mean_loss.item() / math.log(2)


def train(
    strategy: Any, carried: bool, setting: Setting, characters: int, read: Tensor, held: Tensor, seed: int
) -> tuple[float, int]:
    """Bits per character of the held-out lanes after training on `read`; and the number of updates."""
    torch.manual_seed(seed)
    model, count = CharModel(characters, setting.hidden), 0
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.rate)
    for epoch in range(setting.epochs):
        steps = len(read) - 1
        drawn = Drawn(strategy, steps, seed=1000 * seed + epoch)
        flags = None if carried else drawn.starts()
        stream = (
            bptt.Chunk(
                read[:-1][a : a + CHUNK], read[1:][a : a + CHUNK], None if flags is None else flags[a : a + CHUNK]
            )
            for a in range(0, steps, CHUNK)
        )
        zeros = model.zeros(read.shape[1])
        for _ in bptt.unroll(
            model, LOSS, stream, zeros, strategy=drawn, initial_state=zeros, state_batch_dim=1, reduction="mean"
        ):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            count += 1
    return bits(model, held), count


def table(text: str, setting: Setting) -> list[list[Any]]:
    """A row for each strategy, with and without carrying the state."""
    vocabulary = Vocabulary.of(text)
    ids, last = split(vocabulary.encode(text))
    read, held = lanes(ids, setting.batch)[: setting.steps], lanes(last, setting.batch)[: setting.steps]
    rows: list[list[Any]] = []
    for name, strategy in STRATEGIES.items():
        for carried in (True, False):
            began = time.perf_counter()
            runs = [
                train(strategy, carried, setting, len(vocabulary), read, held, seed) for seed in range(setting.seeds)
            ]
            found = [run[0] for run in runs]
            spread = f" ± {statistics.stdev(found):.3f}" if setting.seeds > 1 else ""
            state, published = ("carried", "") if carried else ("zeros", PUBLISHED[name])
            seconds = f"{time.perf_counter() - began:.0f}"
            rows.append([name, state, f"{statistics.fmean(found):.3f}{spread}", published, runs[0][1], seconds])
            print(*rows[-1], sep="  ", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="TBPTT against ARTBP on the characters of a text.")
    parser.add_argument("file", nargs="?", help=HOW)
    parser.add_argument("--full", action="store_true", help="the published setting")
    parser.add_argument("--quick", action="store_true", help="150 characters a lane")
    args = parser.parse_args()
    try:
        text = load_text(args.file or "python-docs" if args.quick else args.file or "")
    except ValueError as error:
        print(f"ptb_char: {error if args.file else 'no file: ' + HOW}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    setting = QUICK if args.quick else FULL if args.full else SMALL
    headings = ["strategy", "segments begin with the state", "valid bits/char", "published, full", "updates", "seconds"]
    name = "ptb_char_quick" if args.quick else "ptb_char_full" if args.full else "ptb_char"
    file = args.file or "python-docs"
    return report(
        name, headings, table(text, setting), [], judged=False, setting=setting._asdict(), text=Path(file).name
    )


if __name__ == "__main__":
    sys.exit(main())
