"""The recurrences, losses and data that the tests share. Nothing here imports `bptt`."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from support.oracle import Problem, leaves, steps, tree_map

F64 = torch.float64


class Both(NamedTuple):
    """A state with a name for each part."""

    position: torch.Tensor
    velocity: torch.Tensor


class DictStep(nn.Module):
    """A user's step: a dict of a floating pair, an integer counter that steers the step, and a boolean flag."""

    def __init__(self, size: int, hidden: int, dtype=F64):
        super().__init__()
        self.inner = nn.Linear(size + hidden, hidden, dtype=dtype)
        self.slow = nn.Parameter(torch.full((hidden,), 0.9, dtype=dtype))

    def forward(self, x, state):
        h, (m, n) = state["h"], state["rest"]
        rate = 1.0 / (1.0 + n.to(h.dtype)).unsqueeze(-1)
        h = torch.tanh(self.inner(torch.cat([x, h], -1))) + rate * m
        m = torch.where(state["odd"].unsqueeze(-1), self.slow * m + h, m - 0.1 * h)
        return h + m, {"h": h, "rest": [m, n + 1], "odd": ~state["odd"]}


class NamedStep(nn.Module):
    """A named tuple; the parts are on different axes, so the batch axis is a pytree too: position (1, B, H)."""

    def __init__(self, size: int, hidden: int, dtype=F64):
        super().__init__()
        self.push = nn.Linear(size, hidden, dtype=dtype)
        self.spring = nn.Parameter(torch.full((hidden,), 0.3, dtype=dtype))

    def forward(self, x, state):
        velocity = 0.9 * state.velocity - self.spring * torch.sin(state.position[0]) + self.push(x)
        position = state.position + velocity
        return position[0], Both(position, velocity)


class ComplexStep(nn.Module):
    """A linear recurrence with complex eigenvalues, read out by its real part."""

    def __init__(self, size: int, hidden: int, dtype=F64):
        super().__init__()
        self.log = nn.Parameter(torch.complex(*(torch.rand(2, hidden, dtype=dtype) - torch.tensor([[1.0], [0.0]]))))
        self.into = nn.Linear(size, hidden, dtype=dtype)

    def forward(self, x, state):
        (z,) = state
        z = torch.exp(self.log) * z + self.into(x)
        return z.real + z.imag.square(), (z,)


class StepByStep(nn.Module):
    """A step function as a recurrence over time, in the plainest way (the engine tests use `bptt.scan`)."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, xs, state):
        ys = []
        for t in range(len(leaves(xs)[0])):
            y, state = self.step(tree_map(lambda v, t=t: v[t], xs), state)
            ys.append(y)
        return tree_map(lambda *parts: torch.stack(parts), *ys), state


def square(outputs, targets):
    """(T, B, H): a loss that is smooth in the outputs and not symmetric in the rows."""
    return (outputs - targets).square() + 0.1 * outputs


@dataclass
class Case:
    """A recurrence by name, its data, a state to start from, and the axis of its rows."""

    name: str
    model: nn.Module
    xs: Any
    ys: torch.Tensor
    zeros: Callable[[], Any]
    batch_dim: Any
    step: nn.Module | None = None

    def random_state(self, seed: int = 1):
        """A state of the right structure with random floating leaves."""
        g = torch.Generator().manual_seed(seed)

        def fill(t):
            if t.is_complex():
                return torch.complex(*torch.rand(2, *t.shape, generator=g, dtype=t.real.dtype))
            if t.is_floating_point():
                return torch.rand(t.shape, generator=g, dtype=t.dtype) - 0.5
            return t.clone()

        return tree_map(fill, self.zeros())

    def parameters(self) -> list:
        return list(self.model.parameters())

    def problem(self, **more) -> Problem:
        """The oracle's view; it starts from zeros unless told otherwise."""
        more.setdefault("initial", self.zeros)
        return Problem(self.model, more.pop("loss", square), self.xs, self.ys, batch_dim=self.batch_dim, **more)


TORCH = ["rnn", "rnn2", "gru", "gru2", "lstm", "lstm2"]
STEPS = ["dict", "named", "complex"]
NAMES = TORCH + STEPS


def make(name: str, T: int, B: int = 2, size: int = 3, hidden: int = 4, dtype=F64, seed: int = 0) -> Case:
    torch.manual_seed(seed)
    xs, ys = torch.randn(T, B, size, dtype=dtype), torch.randn(T, B, hidden, dtype=dtype)
    if name in TORCH:
        layers = 2 if name.endswith("2") else 1
        cell = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[name.removesuffix("2")]
        model = cell(size, hidden, layers, dtype=dtype)

        def zeros():
            h = torch.zeros(layers, B, hidden, dtype=dtype)
            return (h, h.clone()) if cell is nn.LSTM else h

        return Case(name, model, xs, ys, zeros, 1)
    step = {"dict": DictStep, "named": NamedStep, "complex": ComplexStep}[name](size, hidden, dtype)
    flat = torch.zeros(B, hidden, dtype=dtype)
    states = {
        "dict": {
            "h": flat,
            "rest": [flat.clone(), torch.zeros(B, dtype=torch.int64)],
            "odd": torch.zeros(B, dtype=torch.bool),
        },
        "named": Both(flat.clone()[None], flat),
        "complex": (
            torch.zeros(B, hidden, dtype=flat.to(torch.complex64).dtype if dtype != F64 else torch.complex128),
        ),
    }
    dims = {"dict": 0, "named": Both(1, 0), "complex": 0}
    return Case(name, StepByStep(step), xs, ys, lambda: tree_map(torch.clone, states[name]), dims[name], step)


def chunks(*trees, cuts=()):
    """Plain tuples of consecutive pieces of each tree, cut before each step in `cuts`."""
    length = next(len(leaves(t)[0]) for t in trees if t is not None)
    edges = sorted({0, *cuts, length})
    if len(edges) == 2:
        return [trees]  # the very tensors, which may be leaves
    return [tuple(None if t is None else steps(t, a, b) for t in trees) for a, b in itertools.pairwise(edges)]


def some_resets(T: int, B: int, seed: int = 3, rate: float = 0.25) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(T, B, generator=g) < rate
