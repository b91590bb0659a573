"""Back-propagation through time for any stateful PyTorch model: full, truncated, randomised, in bounded memory."""

import importlib
import typing

from bptt import analysis, equations, nn, strategies
from bptt._boundary import scale_gradient
from bptt._calls import advance, backward, evaluate, unroll
from bptt._checkpoint import Checkpoints
from bptt._errors import BudgetError, NonFiniteError, NonFiniteGradientError, NonFiniteLossError
from bptt._explicit import explicit_state
from bptt._loss import per_step
from bptt._recurrence import scan
from bptt._results import Evaluation, Update
from bptt._stream import Chunk
from bptt._window_loss import per_window
from bptt.analysis.answers import Answer, Verification
from bptt.analysis.compare import compare
from bptt.analysis.comparison import Comparison
from bptt.analysis.diagnose import diagnose
from bptt.analysis.diagnosis import Diagnosis
from bptt.analysis.estimates import Compared, Deviation, Estimate
from bptt.analysis.explanation import Explanation, explain
from bptt.analysis.plan import Plan, PlanRow, plan
from bptt.analysis.spectrum import lyapunov
from bptt.analysis.verify import verify
from bptt.strategies import ARTBP, RTRL, UORO, AdaptiveTruncatedBPTT, FullBPTT, SnAp, Strategy, TruncatedBPTT
from bptt.strategies.decay import Decision
from bptt.strategies.laws import ConstantLaw, PolynomialLaw
from bptt.strategies.windows import Carry, Credit, Probe, Window

if typing.TYPE_CHECKING:
    from bptt import data as data
    from bptt import distributed as distributed
    from bptt import export as export
    from bptt import forecast as forecast
    from bptt import models as models
    from bptt import runs as runs
    from bptt.analysis.race import Race as Race
    from bptt.analysis.race import race as race
else:

    def __getattr__(name):
        """The other public packages and `bptt.race`, imported on their first use."""
        if name in ("data", "distributed", "export", "forecast", "models", "runs"):
            return importlib.import_module(f"bptt.{name}")
        if name in ("race", "Race"):
            return getattr(importlib.import_module("bptt.analysis.race"), name)
        raise AttributeError(f"module 'bptt' has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "ARTBP",
    "RTRL",
    "UORO",
    "AdaptiveTruncatedBPTT",
    "Answer",
    "BudgetError",
    "Carry",
    "Checkpoints",
    "Chunk",
    "Compared",
    "Comparison",
    "ConstantLaw",
    "Credit",
    "Decision",
    "Deviation",
    "Diagnosis",
    "Estimate",
    "Evaluation",
    "Explanation",
    "FullBPTT",
    "NonFiniteError",
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "Plan",
    "PlanRow",
    "PolynomialLaw",
    "Probe",
    "Race",
    "SnAp",
    "Strategy",
    "TruncatedBPTT",
    "Update",
    "Verification",
    "Window",
    "advance",
    "analysis",
    "backward",
    "compare",
    "diagnose",
    "equations",
    "evaluate",
    "explain",
    "explicit_state",
    "lyapunov",
    "nn",
    "per_step",
    "per_window",
    "plan",
    "race",
    "scale_gradient",
    "scan",
    "strategies",
    "unroll",
    "verify",
]
