"""The character model that `bptt train` trains, and the text it writes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import bptt
from bptt.cli.printing import UserError, no_memory
from bptt.cli.room import EMBEDDING, FLOAT, LAYERS_MOST, must_have_room, numbers_of
from bptt.data import Vocabulary

CELLS: dict[str, Any] = {"rnn": bptt.nn.RNN, "gru": bptt.nn.GRU, "lstm": bptt.nn.LSTM}

State = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
Step = Callable[[torch.Tensor], torch.Tensor]


class CharModel(nn.Module):
    """Embedding, recurrent layers, one score a character: a recurrence `(inputs, state) -> (scores, state)`.

    Arguments:
        characters: size of the vocabulary.
        cell: "rnn", "gru" or "lstm".
        hidden: units of a layer.
        layers: layers on top of each other.
    """

    state_batch_dim = 1

    def __init__(self, characters: int, cell: str, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.recurrent = CELLS[cell](EMBEDDING, hidden, layers)
        self.decoder = nn.Linear(hidden, characters)

    def forward(
        self,
        inputs: torch.Tensor,
        state: State | None,
        cotangent_weight: torch.Tensor | None = None,
        scores: bool = True,
    ) -> tuple[torch.Tensor, State]:
        """Scores (T, B, characters) for the character after each of `inputs`, ids (T, B) int64; and the state.

        cotangent_weight: handed on to the layers, so that a window is one call whatever the strategy's weights.
        scores: False for the decoder's inputs (T, B, hidden) in their place.
        """
        keywords = {"cotangent_weight": cotangent_weight, "embedding": self.embedding.weight}
        hidden, last = self.recurrent(inputs, state, **keywords)
        return self.decoder(hidden) if scores else hidden, last

    def zero_state(self, inputs: torch.Tensor) -> State:
        """Where a text starts."""
        return self.initial_state(inputs.shape[1])

    def initial_state(self, batch: int) -> State:
        """Zeros (layers, batch, hidden); for an LSTM two of them."""
        return zeros(self.recurrent, batch)

    def stepping(self) -> Step:
        """What `write` takes: a prompt in one call, and then a character at a time."""
        step, device = None, self.decoder.weight.device

        def scores(ids: torch.Tensor) -> torch.Tensor:
            nonlocal step
            if step is not None:
                return self.decoder(step(self.embedding(ids.to(device))))[0]
            step = self.recurrent.stepper(1)
            found, step.state = self(ids[:, None].to(device), self.initial_state(1))
            return found[-1, 0]

        return scores


class Undecoded(nn.Module):
    """A `CharModel` without its decoder, for a loss that contains it."""

    def __init__(self, model: CharModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, inputs: torch.Tensor, state: State | None, cotangent_weight: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """The decoder's inputs (T, B, hidden), and the state."""
        return self.model(inputs, state, cotangent_weight, scores=False)


def decoded_loss(model: CharModel) -> bptt.nn.LinearCrossEntropyLoss:
    """The decoder with its cross entropy, by step: `loss` of the model's scores, without all of them at once."""
    decoder = model.decoder
    found = bptt.nn.LinearCrossEntropyLoss(decoder.in_features, decoder.out_features, device="meta", reduction="none")
    found.linear = decoder
    return found


def zeros(layer: Any, batch: int) -> State:
    """The state (layers, batch, H) that a recurrent layer starts from; for an LSTM two of them."""
    state = layer.weight_hh_l0.new_zeros(layer.num_layers, batch, layer.hidden_size)
    return (state, state.clone()) if isinstance(layer, nn.LSTM) else state


def build(characters: int, cell: str, hidden: int, layers: int, copies: int = 1) -> CharModel:
    """A `CharModel`.

    Arguments:
        copies: how often what it is built for holds each parameter; training also its gradient and averages.

    Raises: UserError if it doesn't fit into memory, before anything is allocated.
    """
    named = f"--hidden {hidden} --layers {layers}"
    if layers > LAYERS_MOST:
        raise UserError(f"--layers {layers}: must be at most {LAYERS_MOST:,}")
    count = numbers_of(characters, cell, hidden, layers)
    must_have_room(copies * FLOAT * count, named, f"no memory for a model of this size: its {count:,} parameters")
    try:
        return CharModel(characters, cell, hidden, layers)
    except (RuntimeError, MemoryError, TypeError, OverflowError) as error:
        if not no_memory(error):
            raise
        raise UserError(f"{named}: no memory for a model of this size") from None


def digest(vocabulary: Vocabulary, *lanes: torch.Tensor) -> str:
    """What tells a vocabulary, or with its ids a text, from another one."""
    known = hashlib.sha256(vocabulary.characters.encode("utf-8", "surrogatepass"))
    for each in lanes:
        known.update(each.numpy().tobytes())
    return known.hexdigest()


loss = bptt.per_step(nn.CrossEntropyLoss())
"""Cross entropy of each next character in nats: scores (T, B, characters), targets (T, B) -> (T, B)."""


@torch.no_grad()
def write(
    step: Step, vocabulary: Vocabulary, prompt: str, length: int, temperature: float, generator: torch.Generator
) -> Iterator[str]:
    """The characters that a model writes after `prompt`, one by one.

    Without a prompt the model is started by a newline, or by the first character where the text has no newline.

    Arguments:
        step: ids (n,) that come next -> scores (characters,) for the one after them; `CharModel.stepping` makes one.
        temperature: scores are divided by it; 0 takes the likeliest character.
        generator: on the CPU, whatever the device of the model, so that a seed writes one text everywhere.

    Raises: ValueError if the prompt holds a character that is not in the vocabulary, and where weights are so large
        that the scores are not finite.
    """
    start = "\n" if "\n" in vocabulary.characters else vocabulary.characters[0]
    ids = vocabulary.encode(prompt or start)
    for _ in range(length):
        last = step(ids).cpu().double()
        if not torch.isfinite(last).all():
            raise ValueError("the model's scores are not finite: its weights are too large to write with.")
        if temperature == 0:
            ids = last.argmax()[None]
        else:  # relative to the largest, so that no temperature, however small, overflows
            ids = torch.multinomial(((last - last.max()) / temperature).softmax(0), 1, generator=generator)
        yield vocabulary.decode(ids)
