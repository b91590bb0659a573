"""Recurrences that are made wrong in one way each, and how they are made right."""

import torch
from torch import nn

B, IN, HIDDEN = 3, 4, 5


class Step(nn.Module):
    """A step of a plain network, in parts that others change."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(IN + HIDDEN, HIDDEN)

    def forward(self, x, h):
        h = torch.tanh(self.inner(torch.cat([x, h], -1)))
        return h, h


class Inside(Step):
    """A second state, by row, kept in an attribute."""

    def __init__(self):
        super().__init__()
        self.mem = torch.zeros(B, HIDDEN)

    def forward(self, x, h):
        h = super().forward(x, h)[0] + 0.5 * self.mem
        self.mem = h.detach()
        return h, h


class Outside(Step):
    """The same, returned."""

    def forward(self, x, state):
        h = super().forward(x, state[0])[0] + 0.5 * state[1]
        return h, (h, h.detach())


class Future(nn.Module):
    """A layer on inputs that are shifted by a step: to the future, or to the past."""

    def __init__(self, shift):
        super().__init__()
        self.rnn, self.shift = nn.RNN(IN, HIDDEN), shift

    def forward(self, xs, state):
        h, last = state
        moved = torch.cat([xs[1:], xs[-1:]]) if self.shift > 0 else torch.cat([last, xs[:-1]])
        ys, h = self.rnn(moved, h)
        return ys, (h, xs[-1:])


class Dropping(Step):
    def __init__(self, p):
        super().__init__()
        self.drop = nn.Dropout(p)

    def forward(self, x, h):
        y, h = super().forward(x, h)
        return self.drop(y), h


class Normed(Step):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, h):
        y, h = super().forward(x, h)
        return self.norm(y), h


class Flat(nn.Module):
    """A layer, and a norm over all steps and rows of a call."""

    def __init__(self, norm):
        super().__init__()
        self.rnn, self.norm = nn.RNN(IN, HIDDEN), norm

    def forward(self, xs, h):
        ys, h = self.rnn(xs, h)
        return self.norm(ys.flatten(0, 1)).unflatten(0, ys.shape[:2]), h


class InPlace(Step):
    def forward(self, x, h):
        h += super().forward(x, h)[0]
        return h.clone(), h


class Added(Step):
    def forward(self, x, h):
        h = h + super().forward(x, h)[0]
        return h, h


class Beside(Step):
    """With a layer that may be used, or not."""

    def __init__(self, used):
        super().__init__()
        self.head, self.used = nn.Linear(HIDDEN, HIDDEN), used

    def forward(self, x, h):
        y, h = super().forward(x, h)
        return (self.head(y) if self.used else y), h


class Rooted(Step):
    """A square root with, or without, something under it that keeps it from zero."""

    def __init__(self, least):
        super().__init__()
        self.least = least

    def forward(self, x, h):
        y, h = super().forward(x, h)
        return (0 * y + self.least).sqrt() + y, h


class Turned(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.rnn = nn.GRU(IN, HIDDEN, batch_first=batch_first)

    def forward(self, xs, h=None):
        return self.rnn(xs, h)


class Numbered(nn.Module):
    """A layer that adds to each step its number, counted from where the call begins, or carried in the state."""

    def __init__(self, carried):
        super().__init__()
        self.rnn, self.carried = nn.RNN(IN, HIDDEN), carried

    def forward(self, xs, state):
        h, n = state
        first = n if self.carried else 0 * n
        ys, h = self.rnn(xs, h)
        return ys + (first + torch.arange(len(xs)))[:, None, None], (h, n + len(xs))
