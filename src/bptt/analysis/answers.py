"""The questions of `verify`, put so that yes is good, and their answers."""

from dataclasses import asdict, dataclass
from typing import Any

from bptt.analysis.shown import Shown, Table, axes

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

    @property
    def mark(self) -> str:
        """The answer in a word or three."""
        return "can't be asked" if self.ok is None else "no" if not self.ok else "ok, but note" if self.detail else "ok"

    def __str__(self) -> str:
        rest = [part for part in (self.detail, self.advice) if part]
        return f"{self.mark:<14}  {self.question}" + "".join(f"  {part}" for part in rest)


@dataclass(frozen=True)
class Verification(Shown):
    """What `verify` found. answers: one for each question, always the same ones in the same order."""

    answers: tuple[Answer, ...]

    @property
    def ok(self) -> bool:
        """Whether no answer is no; what can't be asked, and notes, don't count."""
        return all(answer.ok is not False for answer in self.answers)

    def verdict(self) -> str:
        """How many answers are yes, and which questions are answered by no, in a sentence."""
        asked = [answer for answer in self.answers if answer.ok is not None]
        wrong = [answer.question for answer in asked if not answer.ok]
        if wrong:
            return f"{len(wrong)} of {len(asked)} answers {'are' if len(wrong) > 1 else 'is'} no: {' '.join(wrong)}"
        unasked = len(self.answers) - len(asked)
        return f"All {len(asked)} answers are yes" + (f"; {unasked} could not be asked." if unasked else ".")

    def table(self) -> Table:
        """A line a question, with what was found and what to do."""
        rows = [
            (answer.mark, answer.question, " ".join(filter(None, (answer.detail, answer.advice))))
            for answer in self.answers
        ]
        return Table(("", "question", "found"), rows, words=3)

    def records(self) -> list[dict[str, Any]]:
        """One for each question; `ok` is None where it can't be asked."""
        return [asdict(answer) for answer in self.answers]

    def plot(self, ax: Any = None) -> Any:
        """A mark for each question: yes, no, or can't be asked."""
        return _plot(self, axes(ax))

    def __str__(self) -> str:
        return "\n".join(map(str, self.answers))


def _plot(found: Verification, ax: Any) -> Any:
    """A mark a question, with its answer."""
    colours = {True: "C2", False: "C3", None: "C7"}
    for row, answer in enumerate(found.answers):
        ax.plot(0, row, "o", color=colours[answer.ok])
        ax.annotate(f"{answer.question} {answer.mark}", (0, row), (9, 0), textcoords="offset points", va="center")
    ax.set_xlim(-0.02, 1)
    ax.invert_yaxis()
    ax.set_axis_off()
    return ax


def some(names: list[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def line(error: Exception) -> str:
    """What it says, without a full stop."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]
