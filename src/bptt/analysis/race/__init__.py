"""One model trained by several strategies, from the same start and on equal budgets."""

from bptt.analysis.race.race import Contest, Stopped, Watch, race
from bptt.analysis.race.result import Race, Spread, Standing
from bptt.analysis.race.runner import Point, Run
from bptt.analysis.race.setting import Budget, Setting

__all__ = ["Budget", "Contest", "Point", "Race", "Run", "Setting", "Spread", "Standing", "Stopped", "Watch", "race"]
