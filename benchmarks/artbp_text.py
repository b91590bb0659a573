"""Is ARTBP "in practice not much better than TBPTT"? On a text, at equal updates and at equal time.

A character model (embedding, LSTM of 128 units, decoder; Adam) on the documentation that comes with Python, trained by
`TruncatedBPTT(50)` and by `ARTBP` with windows of 50 steps on average, from the same first weights. Each run continues
until it has made all its updates and used all its time; the held-out tenth is measured at both moments. Time is the
processor time of training on one thread, which a busy machine doesn't change much.

    python benchmarks/artbp_text.py [--seeds 5] [--updates 2000] [--seconds 100]

The intervals are 95 % of Student's t over the seeds. The difference of the two on the same seed answers the question:
an interval that contains zero says that no difference was seen. No target is judged. `--quick` is a trial run.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from typing import Any, NamedTuple

import torch
from reproductions.ptb_char import CHUNK, LOSS, STRATEGIES, CharModel, bits
from torch import Tensor, nn

import bptt
from bptt.data import Vocabulary, lanes, load_text, split
from support import report

QUANTILE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, 97.5 %, by degrees of freedom."""


class Setting(NamedTuple):
    """How large, and how long: updates, and seconds of processor time."""

    hidden: int
    batch: int
    rate: float
    seeds: int
    updates: int
    seconds: float
    steps: int | None = None


FULL = Setting(128, 32, 2e-3, seeds=5, updates=2000, seconds=100.0)
QUICK = Setting(8, 4, 2e-3, seeds=2, updates=3, seconds=0.2, steps=300)


class Measured(NamedTuple):
    """Bits per character of the held-out lanes at two moments, and what had been done at each."""

    at_updates: float
    at_time: float
    characters: int
    updates_in_time: int


def train(strategy: Any, setting: Setting, characters: int, read: Tensor, held: Tensor, seed: int) -> Measured:
    """One run, epoch after epoch, each from the zero state."""
    torch.manual_seed(seed)
    model = CharModel(characters, setting.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.rate)
    generator = torch.Generator().manual_seed(seed)
    at_updates: float | None = None
    at_time: float | None = None
    updates = seen = updates_in_time = 0
    spent, began = 0.0, time.process_time()
    while True:
        stream = ((read[:-1][a : a + CHUNK], read[1:][a : a + CHUNK]) for a in range(0, len(read) - 1, CHUNK))
        zeros = model.zeros(read.shape[1])
        for update in bptt.unroll(model, LOSS, stream, zeros, strategy=strategy, generator=generator):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            spent += time.process_time() - began
            if updates <= setting.updates:
                seen += update.steps * read.shape[1]
            if updates == setting.updates:
                at_updates = bits(model, held)
            if at_time is None and spent >= setting.seconds:
                at_time, updates_in_time = bits(model, held), updates
            if at_updates is not None and at_time is not None:
                return Measured(at_updates, at_time, seen, updates_in_time)
            began = time.process_time()


def interval(values: list[float]) -> str:
    """The mean and its 95 % interval."""
    half = QUANTILE[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.4f} ± {half:.4f}"


def table(runs: dict[str, list[Measured]]) -> list[list[Any]]:
    """A row for each way to be equal."""
    (_, first), (_, second) = runs.items()
    rows = []
    for name, field in (("updates", "at_updates"), ("time", "at_time")):
        one, other = ([getattr(run, field) for run in side] for side in (first, second))
        gain = [b - a for a, b in zip(one, other, strict=True)]
        done = "characters" if name == "updates" else "updates_in_time"
        work = [statistics.fmean(getattr(run, done) for run in side) for side in (first, second)]
        rows.append([name, interval(one), interval(other), interval(gain), f"{work[1] / work[0]:.3f}"])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=FULL.seeds, help="2 to 10")
    parser.add_argument("--updates", type=int, default=FULL.updates)
    parser.add_argument("--seconds", type=float, default=FULL.seconds, help="processor time of training")
    parser.add_argument("--quick", action="store_true", help="a few updates of a tiny model")
    args = parser.parse_args()
    if args.seeds - 1 not in QUANTILE:
        parser.error("--seeds must be 2 to 10")
    torch.set_num_threads(1)
    full = FULL._replace(seeds=args.seeds, updates=args.updates, seconds=args.seconds)
    setting = QUICK if args.quick else full
    text = load_text("python-docs")
    vocabulary = Vocabulary.of(text)
    ids, last = split(vocabulary.encode(text))
    read, held = (lanes(part, setting.batch)[: setting.steps] for part in (ids, last))
    runs: dict[str, list[Measured]] = {name: [] for name in STRATEGIES}
    for seed, name in itertools.product(range(setting.seeds), STRATEGIES):
        runs[name].append(train(STRATEGIES[name], setting, len(vocabulary), read, held, seed))
        print(f"seed {seed}  {name}  {runs[name][-1]}", flush=True)
    headings = [
        "equal",
        *(f"{name}, bits per character" for name in runs),
        "ARTBP - TBPTT",
        "ARTBP's work over TBPTT's",
    ]
    each = {name: [run._asdict() for run in side] for name, side in runs.items()}
    name = "artbp_text" if setting == FULL else "artbp_text_quick"
    return report(name, headings, table(runs), [], judged=False, setting=setting._asdict(), runs=each)


if __name__ == "__main__":
    sys.exit(main())
