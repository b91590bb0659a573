"""Influence balancing: one parameter whose near effect has the opposite sign of its far effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bptt import Chunk
from bptt.data.task import at_least

BLOCK = 256
"""How many powers of A, one per step, `Influence` computes in advance."""


@dataclass(frozen=True)
class InfluenceBalancing:
    """A linear chain driven by one parameter θ, where a short window sees the gradient with the wrong sign.

        s_t = A s_{t-1} + θ v,  A_ii = A_{i,i+1} = 1/2,  v_i = 1 for i < positive, else -1   (1)
        l_t = ½ (s_t[0] - 1)²,  θ* = 1 / (2 (2 positive - size))                             (2)

    size, positive: n and p; as there are more -1 than +1, θ moves s[0] up within p steps, and later further down.

    The model is part of the task: train `model()` from `start()` on `stream(...)` with `loss`, `reduction="sum"`, SGD
    with `learning_rate`, one step per update, for `steps` steps. It has no batch rows and draws nothing.
    Raises ValueError for positive outside 1 .. (size - 1) / 2.

    >>> task = InfluenceBalancing()
    >>> task.optimum, task.start().shape, task.model().theta.item()
    (-0.16666666666666666, torch.Size([23]), 0.5)

    Source: Tallec & Ollivier 2017, https://arxiv.org/abs/1705.08209; size, start and θ = 0.5 of Vicol et
    al. 2023, google/persistent_es.
    """

    size: int = 23
    positive: int = 10
    learning_rate = 1e-5
    steps = 60_000

    def __post_init__(self) -> None:
        at_least(1, "InfluenceBalancing(size=", self.size)
        at_least(1, "InfluenceBalancing(positive=", self.positive)
        if 2 * self.positive >= self.size:
            raise ValueError(
                f"InfluenceBalancing(size={self.size}, positive={self.positive}): the -1 must outnumber the +1, or the "
                f"near and the far effect have one sign. Use positive={(self.size - 1) // 2} or less, or a larger size."
            )

    @property
    def optimum(self) -> float:
        """θ*, which holds s[0] at 1 for ever: s[0] tends to 2 (2 p - n) θ."""
        return 1 / (2 * (2 * self.positive - self.size))

    @property
    def lag(self) -> int:
        """The lag up to which a loss must reach back for ∂s_t[0]/∂θ = Σ_{j<=lag} (A^j v)[0] to have its final sign."""
        matrix, effect = self.dynamics()
        total, lag = effect[0].item(), 0
        while total >= 0:
            effect = matrix @ effect
            total, lag = total + effect[0].item(), lag + 1
        return lag

    def dynamics(self) -> tuple[Tensor, Tensor]:
        """A (n, n) and v (n,) of (1), float64."""
        half = torch.eye(self.size, dtype=torch.float64) / 2
        signs = torch.where(torch.arange(self.size) < self.positive, 1.0, -1.0)
        return half + half.roll(1, dims=1).triu(), signs.double()

    def model(self) -> Influence:
        """A fresh recurrence (1) with θ = 0.5: (inputs (T,), state (n,)) -> (s_t[0] as (T,), state)."""
        return Influence(*self.dynamics())

    def start(self) -> Tensor:
        """The state before the first step: ones (n,), float64."""
        return torch.ones(self.size, dtype=torch.float64)

    def loss(self, outputs: Tensor, targets: None = None) -> Tensor:
        """l_t of (2), (T,)."""
        return (outputs - 1) ** 2 / 2

    def stream(self, length: int, steps: int | None = None) -> Iterator[Chunk]:
        """Chunks of `length` steps, `steps` in all (default: the task's): inputs are zeros that only count steps."""
        steps = self.steps if steps is None else steps
        at_least(1, "stream(length=", length)
        at_least(1, "stream(steps=", steps)
        return self._chunks(length, steps)

    def _chunks(self, length: int, steps: int) -> Iterator[Chunk]:
        for a in range(0, steps, length):
            yield Chunk(torch.zeros(min(length, steps - a), dtype=torch.float64), None)


class Influence(nn.Module):
    """Equation (1), a call of m steps at once, by powers of A that are computed in advance.

        s_m = A^m s_0 + θ V_m,  V_m = Σ_{j<m} A^j v

    The call's outputs and last state are differentiated with respect to θ and the state before the call, so cutting,
    carrying and weighting the state mean what they always mean.
    """

    def __init__(self, matrix: Tensor, effect: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(effect.new_tensor(0.5))
        powers, sums = [matrix], [effect]
        for _ in range(BLOCK - 1):
            sums.append(matrix @ sums[-1] + effect)
            powers.append(matrix @ powers[-1])
        self.powers: Tensor
        self.sums: Tensor
        self.register_buffer("powers", torch.stack(powers), persistent=False)
        self.register_buffer("sums", torch.stack(sums), persistent=False)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(inputs (T,), state (n,)) -> (s_t[0] as (T,), state)."""
        outputs: list[Tensor] = []
        for m in (len(block) for block in inputs.split(BLOCK)):
            outputs.append(self.powers[:m, 0] @ state + self.theta * self.sums[:m, 0])
            state = self.powers[m - 1] @ state + self.theta * self.sums[m - 1]
        return torch.cat(outputs), state
