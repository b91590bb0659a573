"""Recurrences that keep a state of their own, `membrane`, each in another way, and what an error has to call it."""

import types
from collections import deque

import torch
from torch import nn

F64 = torch.float64


class Step(nn.Module):
    """A step with a visible state, and `kept`, a number of its own that the subclasses keep in their ways."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(7, 4, dtype=F64)

    def forward(self, x, h):
        h = torch.tanh(self.inner(torch.cat([x, h], -1)) + 0.3 * self.get())
        self.put(h.mean(0))
        return h, h


class Attribute(Step):
    def __init__(self):
        super().__init__()
        self.membrane = torch.zeros(4, dtype=F64)

    def get(self):
        return self.membrane

    def put(self, value):
        self.membrane = value.detach()


class Buffer(Step):
    def __init__(self):
        super().__init__()
        self.register_buffer("membrane", torch.zeros(4, dtype=F64))

    def get(self):
        return self.membrane.detach()

    def put(self, value):
        self.membrane = value


class InPlace(Step):
    def __init__(self):
        super().__init__()
        self.register_buffer("membrane", torch.zeros(4, dtype=F64))

    def get(self):
        return self.membrane.clone()

    def put(self, value):
        self.membrane.copy_(value.detach())


class Fixed(Step):
    """A parameter without a gradient, changed in place."""

    def __init__(self):
        super().__init__()
        self.membrane = nn.Parameter(torch.zeros(4, dtype=F64), requires_grad=False)

    def get(self):
        return self.membrane.clone()

    def put(self, value):
        self.membrane.data.copy_(value.detach())


class Listed(Step):
    def __init__(self):
        super().__init__()
        self.membrane = [torch.zeros(4, dtype=F64)]

    def get(self):
        return self.membrane[-1]

    def put(self, value):
        self.membrane.append(value.detach())


class Queue(Step):
    """The value of two steps ago."""

    def __init__(self):
        super().__init__()
        self.membrane = deque([torch.zeros(4, dtype=F64)] * 2, maxlen=2)

    def get(self):
        return self.membrane[0]

    def put(self, value):
        self.membrane.append(value.detach())


class Nested(Step):
    def __init__(self):
        super().__init__()
        self.lif = types.SimpleNamespace(cache={"membrane": (torch.zeros(4, dtype=F64), 0)})

    def get(self):
        return self.lif.cache["membrane"][0]

    def put(self, value):
        self.lif.cache["membrane"] = (value.detach(), 1)


class Late(Step):
    """An attribute that isn't there at first."""

    def get(self):
        return getattr(self, "membrane", 0)

    def put(self, value):
        self.membrane = value.detach()


class OfTheClass(Step):
    membrane = 0.0

    def get(self):
        return OfTheClass.membrane

    def put(self, value):
        OfTheClass.membrane = value.mean().item()


class Ratchet(Step):
    """The end state agrees whatever is kept, the outputs don't."""

    membrane = 1

    def forward(self, x, h):
        new = torch.tanh(self.inner(torch.cat([x, h], -1)))
        self.membrane = self.membrane * 0.9 + float(x.mean())
        return new * self.membrane, new


class Inside(nn.Module):
    """A module among others, so that the name is a path."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, dtype=F64), Attribute()

    def forward(self, x, h):
        return self.second(self.first(x), h)


def closure():
    membrane, inner = torch.zeros(4, dtype=F64), nn.Linear(7, 4, dtype=F64)

    def step(x, h):
        nonlocal membrane
        h = torch.tanh(inner(torch.cat([x, h], -1)) + 0.3 * membrane)
        membrane = h.detach().mean(0)
        return h, h

    return step


def own_attribute():
    inner = nn.Linear(7, 4, dtype=F64)

    def step(x, h):
        h = torch.tanh(inner(torch.cat([x, h], -1)) + 0.3 * step.membrane)
        step.membrane = h.detach().mean(0)
        return h, h

    step.membrane = 0
    return step


MEMBRANE = torch.zeros(4, dtype=F64)


def with_a_global():
    inner = nn.Linear(7, 4, dtype=F64)

    def step(x, h):
        h = torch.tanh(inner(torch.cat([x, h], -1)) + 0.3 * MEMBRANE)
        MEMBRANE.copy_(h.detach().mean(0))
        return h, h

    return step


def with_a_default():
    inner = nn.Linear(7, 4, dtype=F64)

    def step(x, h, membrane=[0]):  # noqa: B006
        h = torch.tanh(inner(torch.cat([x, h], -1)) + 0.3 * membrane[0])
        membrane[0] = h.detach().mean(0)
        return h, h

    return step


IMPURE = {
    "attribute": (Attribute, "attribute step.membrane"),
    "buffer": (Buffer, "buffer step.membrane"),
    "in place": (InPlace, "buffer step.membrane"),
    "parameter": (Fixed, "parameter step.membrane"),
    "list": (Listed, "attribute step.membrane"),
    "queue": (Queue, "attribute step.membrane"),
    "nested": (Nested, r"attribute step.lif.cache"),
    "late": (Late, "attribute step.membrane"),
    "class": (OfTheClass, "attribute OfTheClass.membrane"),
    "outputs only": (Ratchet, "attribute step.membrane"),
    "path": (Inside, "attribute step.second.membrane"),
    "closure": (closure, "variable membrane of the function step"),
    "function": (own_attribute, "attribute membrane of the function step"),
    "global": (with_a_global, "global variable MEMBRANE of the function step"),
    "default": (with_a_default, "attribute default value of the function step"),
}
