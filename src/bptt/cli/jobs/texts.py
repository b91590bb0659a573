"""Characters of a text, read in lanes: the source of every model of a text, and the model that comes with bptt."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import torch

from bptt import Chunk
from bptt.analysis.history import BITS
from bptt.cli.files import data_text
from bptt.cli.folder import VOCABULARY
from bptt.cli.jobs.job import Job, Results
from bptt.cli.jobs.series import options
from bptt.cli.printing import UserError, no_memory, one_line, user_errors
from bptt.cli.room import ADAM, FLOAT, must_have_room, numbers_of, numbers_of_window
from bptt.cli.train_config import TrainConfig
from bptt.data import PYTHON_DOCS, Characters, characters
from bptt.models import CharModel, write
from bptt.models.saved import LAYERS_MOST
from bptt.models.text import digest

SAMPLE_LENGTH, SAMPLE_TEMPERATURE = 400, 0.6


class TextSource(Characters):
    """`bptt.data.Characters` of the text that `--data` names.

    surely: whether it was said that a text is meant.
    """

    unit = "character"

    def __init__(self, data: str, rows: int, surely: bool = False) -> None:
        text = data_text(data, surely)
        with user_errors(prefix=f"--batch {rows}: "):
            super().__init__(text, rows)
        self.digest = digest(self.vocabulary, *self.lanes)
        source = "Python documentation" if data == PYTHON_DOCS else data
        self.told = {
            "text": f"{one_line(source)}, {len(text):,} characters, {len(self.vocabulary)} of them distinct",
            "validation": f"the last {len(self.end):,} characters, in {self.held_out_rows} lanes, state carried",
        }

    def measured(self, steps: int | None = None, rows: int | None = None) -> Chunk:
        """The first steps of lanes of what is held out. Raises UserError."""
        return first_steps(self.end, steps, rows)

    @property
    def files(self) -> dict[str, str]:
        """What a run folder gets for it."""
        return {VOCABULARY: json.dumps(self.vocabulary.characters) + "\n"}


def first_steps(ids: torch.Tensor, steps: int | None, rows: int | None) -> Chunk:
    """The first `steps` of `rows` lanes of the characters kept for validation. Raises UserError for too many."""
    with options(f"--batch {rows or 1}: ", steps=f"--length {steps}"):
        return characters.first_steps(ids, steps, rows)


@dataclasses.dataclass(frozen=True)
class TextJob(Job):
    """The character model on a text."""

    @property
    def trained(self) -> tuple[Any, Any]:
        """The decoder is part of the loss."""
        return self.model.trained()  # pyright: ignore[reportCallIssue]

    def start(self, rows: int) -> Any:
        """Zeros."""
        return self.model.initial_state(rows)  # pyright: ignore[reportCallIssue]

    def results(self, folder: Any) -> Results:
        """What the model makes of "The ", or of nothing where the alphabet is another one."""
        vocabulary = self.source.vocabulary
        prompt = "The " if set("The ") <= set(vocabulary.characters) else ""
        generator = torch.Generator().manual_seed(self.seed)
        written = [prompt]
        with contextlib.suppress(ValueError):  # what was trained is kept, whatever it can't write
            model: Any = self.model
            written.extend(write(model.stepping(), vocabulary, prompt, SAMPLE_LENGTH, SAMPLE_TEMPERATURE, generator))
        more = ("More text:", "bptt sample", f"--temperature {SAMPLE_TEMPERATURE}")
        return Results(text="".join(written), more=more)


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


def text_job(config: TrainConfig, device: torch.device) -> TextJob:
    """The character model that `config` names, on a device.

    Raises: UserError for a text or a size that can't be.
    """
    cell, hidden, layers = config.cell or "", config.hidden or 1, config.layers or 1
    source = TextSource(config.data or PYTHON_DOCS, config.batch or 1, config.read_as == "text")
    torch.manual_seed(config.seed)
    with user_errors():
        copies = ADAM if config.optimizer.startswith("adam") else 2
        model = build(len(source.vocabulary), cell, hidden, layers, copies).to(device)
    count = len(source.vocabulary)
    return TextJob(
        name=named(cell, hidden, layers),
        model=model,
        loss=model.loss,
        source=source,
        measure=BITS,
        config=config,
        told=source.told,
        facts={"alphabet": f"{count} characters, those of the validation text included"},
        files=source.files,
        stamp={"vocabulary": digest(source.vocabulary)},
        kept=numbers_of_window(1, source.rows, cell, hidden, layers, count),
        seed=config.seed,
    )


def named(cell: str, hidden: int, layers: int) -> str:
    """A model in a phrase.

    >>> named("lstm", 64, 2)
    'lstm of 2 layers of 64 units'
    """
    return f"{cell} of {f'{layers} layers of ' if layers > 1 else ''}{hidden} units"
