"""Tasks with a known dependency length, drawn from a seed, for any recurrence to be trained on.

`CopyMemory` and `Adding` are finite sequences, one after another, with each start marked in `is_start`. `DelayedCopy`
and `BernoulliAdd` never end. `InfluenceBalancing` has no data, but a model of its own.

>>> for task in (CopyMemory(delay=30), Adding(length=50), DelayedCopy(delay=10), BernoulliAdd(5, 3)):
...     print(task.inputs, task.outputs, task.lag, task.sequence, round(task.baseline, 3), round(task.floor, 3))
10 9 40 50 0.416 0.0
2 1 49 50 0.167 0.0
6 6 10 None 0.624 0.0
2 2 5 None 0.662 0.454
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot

from bptt import per_step
from bptt.data.influence import Influence, InfluenceBalancing
from bptt.data.task import Piece, Task, check

__all__ = ["Adding", "BernoulliAdd", "CopyMemory", "DelayedCopy", "Influence", "InfluenceBalancing", "Task"]

SPAN = 256
"""How many steps an endless task draws at once, whatever the length of the chunks."""


@dataclass(frozen=True)
class CopyMemory(Task):
    """Repeat, after a delay, the symbols that began the sequence.

        x = a_1 .. a_m, delay - 1 blanks, m + 1 markers;   y = delay + m blanks, a_1 .. a_m       (1)
        baseline = m ln(symbols) / (delay + 2 m)                                                  (2)

    delay: T, >= 1. length: m, >= 1. symbols: how many the a_i are drawn from, >= 2.

    Finite sequences of delay + 2 m steps; lag = delay + m. Inputs are one-hot over symbols, blank and marker; targets
    are the symbols' numbers, or `symbols` for a blank.
    Raises ValueError for smaller numbers.

    >>> chunk = next(CopyMemory(delay=3, length=2).stream(batch=1, length=7))
    >>> chunk.inputs.argmax(-1).flatten().tolist(), chunk.targets.flatten().tolist()
    ([4, 7, 8, 8, 9, 9, 9], [8, 8, 8, 8, 8, 4, 7])

    Source: Hochreiter & Schmidhuber 1997; Arjovsky, Shah & Bengio 2016, https://arxiv.org/abs/1511.06464, whose marker
    is one step long; here it stays while the answer is wanted, as in Bai, Kolter & Koltun 2018 (locuslab/TCN).
    """

    delay: int = 100
    length: int = 10
    symbols: int = 8

    def __post_init__(self) -> None:
        check(self, delay=1, length=1, symbols=2)

    @property
    def inputs(self) -> int:
        return self.symbols + 2

    @property
    def outputs(self) -> int:
        return self.symbols + 1

    @property
    def lag(self) -> int:
        return self.delay + self.length

    @property
    def sequence(self) -> int:
        return self.delay + 2 * self.length

    @property
    def baseline(self) -> float:
        return self.length * math.log(self.symbols) / self.sequence

    def _pieces(self, batch: int, generator: Generator) -> Iterator[Piece]:
        for _ in itertools.count():
            said = torch.randint(self.symbols, (self.length, batch), generator=generator)
            inputs = said.new_full((self.sequence, batch), self.symbols)
            targets = inputs.clone()
            inputs[: self.length], targets[-self.length :] = said, said
            inputs[-self.length - 1 :] = self.symbols + 1
            steps = torch.arange(self.sequence)
            yield Piece(one_hot(inputs, self.inputs).float(), targets, steps == 0, steps >= 0)


@dataclass(frozen=True)
class Adding(Task):
    """Add the two marked numbers of a sequence.

        x_t = (u_t, m_t),  u_t ~ U(0, 1),  m = 1 at i ~ U{0 .. ⌊T/2⌋-1}, at j ~ U{⌊T/2⌋ .. T-1}, else 0
        y = u_i + u_j at the last step, the only one whose loss counts;  baseline = 2/12       (1)

    length: T, >= 2.

    Finite sequences of T steps; lag = T - 1, at least T/2 - 1 for each. The loss is the squared error.
    Raises ValueError for a shorter length.

    >>> chunk = next(Adding(length=4).stream(batch=1, length=4))
    >>> numbers, marks = chunk.inputs[:, 0].T
    >>> marks.tolist(), bool((numbers @ marks).isclose(chunk.targets[-1, 0, 0])), chunk.mask.tolist()
    ([0.0, 1.0, 0.0, 1.0], True, [False, False, False, True])

    Source: Hochreiter & Schmidhuber 1997, section 5.4; numbers, halves, target and baseline of Arjovsky, Shah & Bengio
    2016, https://arxiv.org/abs/1511.06464.
    """

    length: int = 100

    def __post_init__(self) -> None:
        check(self, length=2)

    @property
    def inputs(self) -> int:
        return 2

    @property
    def outputs(self) -> int:
        return 1

    @property
    def lag(self) -> int:
        return self.length - 1

    @property
    def sequence(self) -> int:
        return self.length

    @property
    def baseline(self) -> float:
        return 1 / 6

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return per_step(nn.MSELoss())

    def _pieces(self, batch: int, generator: Generator) -> Iterator[Piece]:
        half, steps = self.length // 2, torch.arange(self.length)
        for _ in itertools.count():
            numbers = torch.rand(self.length, batch, generator=generator)
            first = torch.randint(half, (batch,), generator=generator)
            second = torch.randint(half, self.length, (batch,), generator=generator)
            marks = ((steps[:, None] == first) | (steps[:, None] == second)).float()
            targets = torch.zeros(self.length, batch, 1)
            targets[-1, :, 0] = (numbers * marks).sum(0)
            yield Piece(torch.stack([numbers, marks], -1), targets, steps == 0, steps == self.length - 1)


@dataclass(frozen=True)
class DelayedCopy(Task):
    """Repeat the input of `delay` steps ago, where words of `delay` symbols and as many blanks take turns.

        x = 1, a_2 .. a_m, m times 0, 1, ...,  a_i ~ U{2 .. symbols + 1},  y_t = x_{t-m}       (1)
        baseline = (m - 1) ln(symbols) / (2 m)                                                 (2)

    delay: m, >= 2. symbols: how many the a_i are drawn from, >= 2.

    It never ends; lag = m. Each row begins anywhere in a word or a pause; the losses of the first m steps, whose
    targets are inputs from before the first step, don't count. Inputs are one-hot over 0 (blank), 1 (start) and the
    symbols.
    Raises ValueError for smaller numbers.

    >>> chunk = next(DelayedCopy(delay=3).stream(batch=1, length=12))
    >>> print(*chunk.inputs.argmax(-1).flatten().tolist(), "/", *chunk.targets.flatten().tolist()[3:])
    5 0 0 0 1 5 5 0 0 0 1 2 / 5 0 0 0 1 5 5 0 0

    Source: Aicher, Foti & Fox 2019, https://arxiv.org/abs/1905.07473, and the authors' code
    (aicherc/adaptive_tbptt), whose data have m = 10 and four symbols.
    """

    delay: int = 10
    symbols: int = 4

    def __post_init__(self) -> None:
        check(self, delay=2, symbols=2)

    @property
    def inputs(self) -> int:
        return self.symbols + 2

    @property
    def outputs(self) -> int:
        return self.symbols + 2

    @property
    def lag(self) -> int:
        return self.delay

    @property
    def baseline(self) -> float:
        return (self.delay - 1) * math.log(self.symbols) / (2 * self.delay)

    def _pieces(self, batch: int, generator: Generator) -> Iterator[Piece]:
        phase = torch.randint(2 * self.delay, (batch,), generator=generator)
        past = torch.zeros(self.delay, batch, dtype=torch.int64)
        for start in itertools.count(0, SPAN):
            steps = torch.arange(start, start + SPAN)
            drawn = torch.randint(2, self.inputs, (SPAN, batch), generator=generator)
            at = (steps[:, None] + phase) % (2 * self.delay)
            now = torch.where(at == 0, 1, torch.where(at < self.delay, drawn, 0))
            so_far = torch.cat([past, now])
            past = so_far[SPAN:]
            yield Piece(one_hot(now, self.inputs).float(), so_far[:SPAN], steps < 0, steps >= self.delay)


@dataclass(frozen=True)
class BernoulliAdd(Task):
    """Coins whose chance depends on two coins of the past.

        P(x_t = 1) = 1/2,  P(y_t = 1) = 1/2 + 1/2 x_{t-t1} - 1/4 x_{t-t2}                      (1)
        baseline = H(5/8),  floor = (H(1/2) + H(1) + H(1/4) + H(3/4)) / 4                      (2)

    t1, t2: steps back, >= 0 and different. H(p) is the entropy of a coin, in nats.

    It never ends; lag = max(t1, t2), and the losses of the first `lag` steps don't count. The inputs are (x, 1 - x),
    the targets y. Raises ValueError for equal or smaller numbers.

    >>> task = BernoulliAdd(t1=3, t2=1)
    >>> round(task.baseline, 4), round(task.floor, 4)
    (0.6616, 0.4545)

    Source: Pitis 2016, https://r2rt.com/recurrent-neural-networks-in-tensorflow-i.html, t1 = 3, t2 = 8; Marschall, Cho
    & Savin 2020, https://arxiv.org/abs/1907.02649, and the authors' code (omarschall/vanilla-rtrl).
    """

    t1: int = 3
    t2: int = 8

    def __post_init__(self) -> None:
        check(self, t1=0, t2=0)
        if self.t1 == self.t2:
            raise ValueError(f"{self!r}: the two coins must be different. Use another t2.")

    @property
    def inputs(self) -> int:
        return 2

    @property
    def outputs(self) -> int:
        return 2

    @property
    def lag(self) -> int:
        return max(self.t1, self.t2)

    @property
    def baseline(self) -> float:
        return _entropy(5 / 8)

    @property
    def floor(self) -> float:
        return sum(map(_entropy, (1 / 2, 1, 1 / 4, 3 / 4))) / 4

    def _pieces(self, batch: int, generator: Generator) -> Iterator[Piece]:
        past = torch.zeros(self.lag, batch)
        for start in itertools.count(0, SPAN):
            steps = torch.arange(start, start + SPAN)
            now, chance = torch.rand(2, SPAN, batch, generator=generator)
            now = (now < 0.5).float()
            so_far = torch.cat([past, now])
            one, other = (so_far.narrow(0, self.lag - back, SPAN) for back in (self.t1, self.t2))
            past = so_far[SPAN:]
            targets = (chance < 0.5 + 0.5 * one - 0.25 * other).long()
            yield Piece(torch.stack([now, 1 - now], -1), targets, steps < 0, steps >= self.lag)


def _entropy(p: float) -> float:
    """The entropy of a coin that shows 1 with probability p, in nats."""
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
