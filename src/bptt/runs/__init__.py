"""What a loop of your own needs to lose nothing: states saved whole, files replaced whole, one writer at a time.

Nothing here knows of models: what is saved is a nested state, such as `unroll(...).state_dict()` beside those of the
model and the optimizer.
"""

from bptt.runs.events import Events
from bptt.runs.files import Lines, replace
from bptt.runs.interrupt import Interrupt
from bptt.runs.lock import InUseError, Lock
from bptt.runs.noise import random_state, set_random_state
from bptt.runs.snapshots import DamagedError, Snapshot, Snapshots
from bptt.runs.weights import load_weights, save_weights

__all__ = [
    "DamagedError",
    "Events",
    "InUseError",
    "Interrupt",
    "Lines",
    "Lock",
    "Snapshot",
    "Snapshots",
    "load_weights",
    "random_state",
    "replace",
    "save_weights",
    "set_random_state",
]
