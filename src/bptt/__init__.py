"""Back-propagation through time for any stateful PyTorch model: full, truncated, randomised, in bounded memory."""

from bptt import equations, nn, strategies
from bptt.checks import NonFiniteError, NonFiniteGradientError, NonFiniteLossError
from bptt.compare import compare
from bptt.comparison import Compared, Comparison, Deviation, Estimate
from bptt.diagnostics import Diagnosis, diagnose
from bptt.gates import scale_gradient
from bptt.memory import Checkpoints
from bptt.plan import Plan, PlanRow, plan
from bptt.recurrence import per_step, scan
from bptt.results import Evaluation, Update
from bptt.schedules.decay import Decision
from bptt.schedules.laws import ConstantLaw, PolynomialLaw
from bptt.schedules.windows import Credit, Probe, Window
from bptt.spectrum import lyapunov
from bptt.strategies import ARTBP, AdaptiveTruncatedBPTT, FullBPTT, Strategy, TruncatedBPTT
from bptt.stream import Chunk
from bptt.unroll import backward, evaluate, unroll

__version__ = "0.1.0"

__all__ = [
    "ARTBP",
    "AdaptiveTruncatedBPTT",
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
    "FullBPTT",
    "NonFiniteError",
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "Plan",
    "PlanRow",
    "PolynomialLaw",
    "Probe",
    "Strategy",
    "TruncatedBPTT",
    "Update",
    "Window",
    "backward",
    "compare",
    "diagnose",
    "equations",
    "evaluate",
    "lyapunov",
    "nn",
    "per_step",
    "plan",
    "scale_gradient",
    "scan",
    "strategies",
    "unroll",
]
