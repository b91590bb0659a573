"""The character model: next characters predicted, and text written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bptt
from bptt.data import Vocabulary
from bptt.models import saved
from bptt.models.layers import State, layers_of, zeros

EMBEDDING = 64
"""Numbers that stand for one character; enough for alphabets of a few hundred."""

VOCABULARY_MOST = 2**26
"""Bytes; all of Unicode, each character as an escape, needs a fifth of it."""

Step = Callable[[Tensor], Tensor]


class CharModel(nn.Module):
    """Embedding, recurrent layers, one score per character: a recurrence `(inputs, state) -> (scores, state)`.

        e_t = E[x_t],  h_t = cell(e_t, h_{t-1}),  scores_t = V h_t + b                         (1)

    Arguments:
        characters: size of the vocabulary.
        cell: "rnn", "gru" or "lstm", on the kernels of `bptt.nn`.
        hidden: units of a layer. layers: layers on top of each other. embedding: numbers per character.

    Call: ids (T, B) int64, state -> scores (T, B, characters) for the character after each, state.
    Raises ValueError for a cell that doesn't exist.

    >>> import bptt, torch
    >>> from bptt.data import Vocabulary, chunks, lanes
    >>> text = "to be or not to be, that is the question. " * 20
    >>> vocabulary = Vocabulary.of(text)
    >>> model = CharModel(len(vocabulary), "gru", hidden=16)
    >>> optimizer = torch.optim.Adam(model.parameters(), 0.01)
    >>> stream = chunks(lanes(vocabulary.encode(text), 4), 32, epochs=2)
    >>> for update in bptt.unroll(*model.trained(), stream, strategy=bptt.TruncatedBPTT(32)):
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> len("".join(write(model.stepping(), vocabulary, "to ", length=20)))
    20
    """

    state_batch_dim = 1
    loss = staticmethod(bptt.per_step(nn.CrossEntropyLoss()))
    """Cross entropy of each next character in nats: scores (T, B, characters), targets (T, B) -> (T, B)."""

    def __init__(self, characters: int, cell: str, hidden: int, layers: int = 1, embedding: int = EMBEDDING) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, embedding)
        self.recurrent = layers_of(cell, embedding, hidden, layers)
        self.decoder = nn.Linear(hidden, characters)

    def forward(
        self, inputs: Tensor, state: State | None = None, cotangent_weight: Tensor | None = None, scores: bool = True
    ) -> tuple[Tensor, State]:
        """Scores (T, B, characters) for the character after each of `inputs`, ids (T, B) int64; and the state.

        cotangent_weight: handed on to the layers, so that a window is one call whatever the strategy's weights.
        scores: False for the decoder's inputs (T, B, hidden) in their place.
        """
        keywords = {"cotangent_weight": cotangent_weight, "embedding": self.embedding.weight}
        hidden, last = self.recurrent(inputs, state, **keywords)
        return self.decoder(hidden) if scores else hidden, last

    @classmethod
    def load(cls, folder: str | Path) -> tuple[CharModel, Vocabulary]:
        """The model that `bptt train` left in a folder, in evaluation mode, and its vocabulary.

        Raises: ValueError for a folder that holds none, or whose files are damaged or don't fit each other;
            ImportError without safetensors and PyYAML.
        """
        folder = Path(folder)
        saved.must_hold(folder, "not a run folder with weights", saved.WEIGHTS, saved.CONFIG, saved.VOCABULARY)
        with saved.damaged(folder):
            cell, hidden, layers = saved.shape(folder)
            vocabulary = load_vocabulary(folder)
            stamp, of = {"vocabulary": digest(vocabulary)}, f"{saved.CONFIG} and {saved.VOCABULARY}"
            model = saved.filled(folder, lambda: cls(len(vocabulary), cell, hidden, layers), layers, stamp, of)
        return model, vocabulary

    def zero_state(self, inputs: Tensor) -> State:
        """Where a text starts: zeros, for as many rows as `inputs` (T, B) have."""
        return self.initial_state(inputs.shape[1])

    def initial_state(self, batch: int) -> State:
        """Zeros (layers, batch, hidden); for an LSTM two of them."""
        return zeros(self.recurrent, batch)

    def trained(self) -> tuple[nn.Module, Any]:
        """(model, loss) as `bptt.unroll` takes them, on the same parameters: the decoder is part of the loss.

        Gradients are those of `CharModel.loss` on the model itself; the scores of a window are never held all at once.
        """
        decoder = self.decoder
        sizes = decoder.in_features, decoder.out_features
        found = bptt.nn.LinearCrossEntropyLoss(*sizes, device="meta", reduction="none")
        found.linear = decoder
        return Undecoded(self), found

    def stepping(self) -> Step:
        """What `write` takes: a prompt in one call, and then a character at a time."""
        step, device = None, self.decoder.weight.device

        def scores(ids: Tensor) -> Tensor:
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
        self, inputs: Tensor, state: State | None = None, cotangent_weight: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The decoder's inputs (T, B, hidden), and the state."""
        return self.model(inputs, state, cotangent_weight, scores=False)


def load_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a run folder: a string of all characters, or a list of them. Raises ValueError."""
    found = saved.plain(folder, saved.VOCABULARY, VOCABULARY_MOST)
    if isinstance(found, list) and all(isinstance(c, str) and len(c) == 1 for c in found):
        found = "".join(found)
    if not isinstance(found, str):
        told = f"must be one string of all characters, not {type(found).__name__}"
        raise ValueError(f"{saved.VOCABULARY}: {told}")
    return Vocabulary(found)


def digest(vocabulary: Vocabulary, *lanes: Tensor) -> str:
    """What tells a vocabulary, or with its ids a text, from a different one."""
    known = hashlib.sha256(vocabulary.characters.encode("utf-8", "surrogatepass"))
    for each in lanes:
        known.update(each.numpy().tobytes())
    return known.hexdigest()


@torch.no_grad()
def write(
    step: Step,
    vocabulary: Vocabulary,
    prompt: str = "",
    length: int = 400,
    temperature: float = 0.6,
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """The characters that a model writes after `prompt`, one by one.

    Without a prompt the model is started by a newline, or by the first character where the text has no newline.

    Arguments:
        step: ids (n,) that come next -> scores (characters,) for the one after them; `CharModel.stepping` makes one.
        vocabulary: a `bptt.data.Vocabulary`.
        length: characters to write.
        temperature: scores are divided by it; 0 takes the likeliest character.
        generator: on the CPU, whatever the device of the model, so that a seed writes one text everywhere.

    Raises: ValueError if the prompt holds a character that is not in the vocabulary, and where weights are so large
        that the scores are not finite.
    Cost: one step of the model per character.

    >>> from bptt.data import Vocabulary
    >>> "".join(write(lambda ids: torch.eye(3)[(ids[-1] + 1) % 3], Vocabulary("abc"), "a", length=5, temperature=0))
    'bcabc'
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
