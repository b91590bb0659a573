"""Whether every strategy of a comparison can make an update at all, before anything is run."""

from __future__ import annotations

from typing import Any

import bptt
from bptt.analysis.race import Budget
from bptt.analysis.race.race import must_fit as must_update
from bptt.cli.contest.settings import Chosen
from bptt.cli.printing import UserError, user_errors
from bptt.cli.room import FLOAT, must_have_room
from bptt.strategies import says

STEPS_MOST = 10_000_000
"""Steps of a window that any budget of memory makes an update of within hours."""


def must_fit(chosen: Chosen, strategies: dict[str, Any], budget: Budget) -> None:
    """Make an update by each strategy, thrown away.

    Raises: UserError for a budget of steps or memory that is too little, with the least that isn't.
    """
    setting, memory = chosen.setting, chosen.setting.memory
    sequence = setting.steps(next(setting.sequences(0)))
    whole = next((name for name, strategy in strategies.items() if says(strategy, "sequences")), None)
    if whole and budget.steps is not None and budget.steps < sequence:
        raise UserError(
            f"--budget {budget.steps}: {whole} needs at least the {sequence} steps of a sequence. Give that or "
            f"more, or leave {whole} out of --strategies"
        )
    for name, strategy in strategies.items():
        _ends(chosen, name, strategy, budget, sequence)
    with user_errors():
        try:
            must_update(setting, strategies, budget)
        except bptt.BudgetError as error:
            told = str(error).partition(": ")[2].rstrip(".").replace("of strategies", "of --strategies")
            raise UserError(f"--memory {memory}: {told}") from None
        except (RuntimeError, MemoryError, OverflowError):  # torch has no error of its own for too large a size
            raise UserError("no memory for a model of this size. Give a smaller --hidden") from None


def _ends(chosen: Chosen, name: str, strategy: Any, budget: Budget, sequence: int) -> None:
    """Raise UserError for windows that a run's budget, its data or memory has no room for: no update comes of them."""
    whole = says(strategy, "sequences")
    steps = 0 if whole else says(strategy, "reach") or 0
    for most, of in ((budget.steps, f"--budget {budget.steps}"), (chosen.whole, "one pass through the text")):
        if most is not None and steps > most and says(strategy, "lengths_known"):
            raise UserError(
                f"--strategies {name}: windows of {steps:,.0f} steps, but {of} has only {most:,}; give that or less"
            )
    if chosen.setting.memory is None:
        steps = sequence if whole else steps
        what = f"a window of {steps:,.0f} steps"
        must_have_room(FLOAT * steps * chosen.kept, f"--strategies {name}", what, "Give --memory, or smaller sizes")
    elif steps > STEPS_MOST:
        raise UserError(f"--strategies {name}: windows of {steps:,.0f} steps; give {STEPS_MOST:,} or less")
