"""The questions of `verify`, put so that yes is good, and their answers."""

from dataclasses import dataclass

DEVICE = "Are model, data and state on one device?"
AXES = "Does the model take steps for steps and rows for rows?"
FUNCTION = "Is the recurrence a function of inputs and state?"
REPLAYS = "Does a replay of some steps give the same again?"
IN_PLACE = "Does the recurrence leave the state that it is given as it was?"
TIME = "Do steps come out the same whatever other steps are in their call?"
ROWS = "Are batch rows independent of one another in the recurrence?"
LOSS_STEPS = "Is the loss of a step a function of that step alone?"
LOSS_ROWS = "Is the loss of a row a function of that row alone?"
TRAINED = "Does anything ask for a gradient?"
FINITE = "Are losses and gradients finite?"
REACHED = "Does a gradient reach every parameter?"

REST = [AXES, FUNCTION, REPLAYS, IN_PLACE, TIME, ROWS, LOSS_STEPS, LOSS_ROWS, TRAINED, FINITE, REACHED]
"""All but the first, in their order."""


@dataclass(frozen=True)
class Answer:
    """An answer of `verify`.

    question: put so that yes is good. ok: True, False, or None where it can't be asked.
    detail: what was found, or why it can't be asked; a note where it is ok. advice: what to do; "" where nothing is.
    """

    question: str
    ok: bool | None
    detail: str = ""
    advice: str = ""

    def __str__(self) -> str:
        mark = "can't be asked" if self.ok is None else "no" if not self.ok else "ok, but note" if self.detail else "ok"
        rest = [part for part in (self.detail, self.advice) if part]
        return f"{mark:<14}  {self.question}" + "".join(f"  {part}" for part in rest)


@dataclass(frozen=True)
class Verification:
    """What `verify` found. answers: one for each question, always the same ones in the same order."""

    answers: tuple[Answer, ...]

    @property
    def ok(self) -> bool:
        """Whether no answer is no; what can't be asked, and notes, don't count."""
        return all(answer.ok is not False for answer in self.answers)

    def __str__(self) -> str:
        return "\n".join(map(str, self.answers))


def some(names: list[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def line(error: Exception) -> str:
    """What it says, without a full stop."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]
