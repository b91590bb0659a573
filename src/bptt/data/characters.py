"""A text in lanes, with its end held out."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bptt import Chunk
from bptt.data.lanes import chunks, lanes
from bptt.data.text import Vocabulary, split

CHUNK = 256
LENGTH, ROWS = 200, 8
"""Of what is looked at where nothing is said."""
LANE_LEAST = 1000
"""Steps of a lane that is held out, at the least: each starts from zeros, which isn't to count."""


class Characters:
    """The characters of a text as ids in lanes; the last tenth is held out.

    Arguments:
        text: that the vocabulary is made of, and read.
        rows: lanes that the training part is cut into.

    Attributes: vocabulary; rows; steps, that each lane of training predicts in an epoch; held_out_rows.
    Raises: ValueError for more lanes than there are pairs of characters.

    >>> source = Characters("to be or not to be, that is the question. " * 50, rows=4)
    >>> chunk = next(source.stream(length=10))
    >>> chunk.inputs.shape, source.vocabulary.decode(chunk.inputs[:, 0]), source.vocabulary.decode(chunk.targets[:, 0])
    (torch.Size([10, 4]), 'to be or n', 'o be or no')
    """

    def __init__(self, text: str, rows: int) -> None:
        self.vocabulary, self.rows = Vocabulary.of(text), rows
        train, self.end = split(self.vocabulary.encode(text))
        self._train = lanes(train, rows)
        self._held_out = lanes(self.end, max(1, min(rows, len(self.end) // LANE_LEAST)))
        self.steps, self.held_out_rows = len(self._train) - 1, self._held_out.shape[1]

    @property
    def lanes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (T, rows) of the training part and of what is held out."""
        return self._train, self._held_out

    def stream(self, length: int, epochs: int | None = None) -> Iterator[Chunk]:
        """Chunks of `length` characters of the training part, for ever if `epochs` is None; its place can be saved."""
        return chunks(self._train, length, epochs)

    def held_out(self) -> Iterator[Chunk]:
        """Chunks of what is held out; `bptt.evaluate` takes them."""
        return chunks(self._held_out, CHUNK)

    def measured(self, steps: int | None = None, rows: int | None = None) -> Chunk:
        """The first steps of lanes of what is held out, up to 200 of up to 8, to look at a gradient.

        Raises: ValueError where there are fewer than are asked for.
        """
        return first_steps(self.end, steps, rows)


def first_steps(ids: torch.Tensor, steps: int | None, rows: int | None) -> Chunk:
    """The first `steps` of `rows` lanes of the characters kept for validation, or about LENGTH of ROWS.

    Raises: ValueError where they have fewer.
    """
    count = len(ids)
    batch = rows or max(1, min(ROWS, count // ((steps or LENGTH) + 1)))
    read = lanes(ids, batch)
    most = len(read) - 1
    length = min(LENGTH, most) if steps is None else steps
    if length > most:
        raise ValueError(
            f"steps={length}: the {count:,} characters kept for validation make {batch} lane{'s' * (batch > 1)} of "
            f"only {most:,} to predict; give that or less."
        )
    return Chunk(read[:length], read[1 : length + 1])
