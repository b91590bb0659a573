"""A small network and a sequence for it, with numbers that can be followed by hand."""

from typing import NamedTuple

import torch
from torch import Tensor

from bptt.equations import Network

MOST = {"hidden": 8, "input": 16, "output": 16, "steps": 12}
"""Beyond these sizes no table can be read, and ARTBP has too many patterns to list them all."""
DRAWN = "drawn at random and printed in full"
"""Said of parameters that are."""


class Example(NamedTuple):
    """What `explain` takes, in this order.

    network: a `Network`. x: (T, I). y: (T, O), or classes (T,). sources: where parameters and sequence come from, as
    "Parameters are ..." and "The sequence is ..." go on. characters: what components stand for, or "".
    """

    network: Network
    x: Tensor
    y: Tensor
    sources: tuple[str, str]
    characters: str = ""


def example(
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    text: str | None = None,
    steps: int = 4,
    inputs: int = 1,
    hidden: int = 2,
    outputs: int | None = None,
    nonlinearity: str = "tanh",
    loss: str | None = None,
    bias: bool = False,
    radius: float = 0.9,
    generator: torch.Generator | None = None,
) -> Example:
    """Draw a small network, and a sequence where none is given: `explain(*example())` works through it.

    Numbers are rounded to two decimals, those of W to three, so that what is printed is exact.

    x, y: the sequence, (T, I) floating and (T, O) floating or (T,) int64 classes; None draws them.
    text: predict each next character of this text instead, up to 13 of them, one-hot.
    steps, inputs: T and I of what is drawn. hidden: H, 1 to 8. outputs: O; None is 1, or as many as there are classes.
    nonlinearity: as in `Network`. loss: as there; None is the squared error, for a text the cross-entropy.
    bias: whether there are b and c. radius: the spectral radius of W, before rounding.
    generator: the source of randomness; None is one of seed 0.

    Returns an `Example` (network, x, y, sources, characters). Raises ValueError for sizes beyond 12 steps, 16 inputs,
    16 outputs and 8 units, for a text that can't be one, and for what doesn't go together.

    >>> from bptt.analysis import example
    >>> example(hidden=3).network.W.shape, example(text="hello").characters
    (torch.Size([3, 3]), 'ehlo')
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    loss = loss or ("squared_error" if text is None else "softmax_cross_entropy")
    characters, sequence = "", "as given"
    if (x is None) != (y is None) or (x is not None and text is not None):
        raise ValueError("example: give x and y, or text=, or none of them for a sequence drawn at random.")
    if text is not None:
        x, y, characters = _of_text(text, loss)
        outputs, sequence = len(characters), f'that of the text "{text}"'
    elif x is None or y is None:
        usual = 2 if loss == "softmax_cross_entropy" else 1
        outputs, sequence = usual if outputs is None else outputs, "drawn at random"
        _check_sizes(steps=steps, input=inputs, output=outputs, hidden=hidden)
        x = _draw(steps, inputs, generator)
        if loss == "softmax_cross_entropy":
            y = torch.randint(outputs, (steps,), generator=generator)
        else:
            y = _draw(steps, outputs, generator)
    elif x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, and must be (T, I), one sequence of T >= 1 steps.")
    elif outputs is None:
        outputs = y.shape[-1] if y.is_floating_point() else max(2, int(y.max()) + 1)
    if outputs == 1 and loss == "softmax_cross_entropy":
        raise ValueError("output 1: softmax_cross_entropy needs 2 classes or more")
    _check_sizes(steps=len(x), input=x.shape[1], output=outputs, hidden=hidden)
    active = 1 if characters else x.shape[1]
    U = _draw(hidden, x.shape[1], generator, active**-0.5)  # so that a_t is of order 1, whatever the sizes
    V = _draw(outputs, hidden, generator, hidden**-0.5)
    W = _draw(hidden, hidden, generator)
    W = (W * radius / torch.linalg.eigvals(W).abs().max()).round(decimals=3)
    b, c = (_draw(1, n, generator)[0] if bias else None for n in (hidden, outputs))
    return Example(Network(U, W, V, b, c, nonlinearity, loss), x, y, (DRAWN, sequence), characters)


def check_sizes(network: Network, steps: int) -> None:
    """Raise ValueError for more than tables can show."""
    hidden, inputs = network.U.shape
    _check_sizes(steps=steps, input=inputs, output=len(network.V), hidden=hidden)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not 1 <= size <= MOST[name]:
            raise ValueError(f"{name} {size}: must be 1 to {MOST[name]}, for tables that can be read")


def _draw(rows: int, columns: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Normal numbers of two decimals, none of them 0."""
    cents = (100 * scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)).round()
    return torch.where(cents == 0, 1, cents) / 100


def _of_text(text: str, loss: str) -> tuple[Tensor, Tensor, str]:
    """x, y, and the characters that components stand for."""
    most = MOST["steps"] + 1
    if loss == "squared_error":
        raise ValueError("loss='squared_error' doesn't go with text=: characters are classes.")
    if not 2 <= len(text) <= most:
        raise ValueError(
            f"text of length {len(text)}: must have 2 to {most} characters, as there is a step for each but the last"
        )
    characters = "".join(sorted(set(text)))
    if len(characters) < 2:
        raise ValueError("text: holds only one character, so there is nothing to predict")
    ids = torch.tensor([characters.index(c) for c in text])
    return torch.nn.functional.one_hot(ids[:-1], len(characters)).to(torch.float64), ids[1:], characters
