"""The recurrent cells, one file each: what any implementation of the passes over a sequence knows of them."""

from bptt.nn.cells.base import ACTIVATIONS, Cell
from bptt.nn.cells.gru import GRU
from bptt.nn.cells.lstm import LSTM
from bptt.nn.cells.rate import Rate
from bptt.nn.cells.rnn import RNN
from bptt.nn.cells.voltage import Voltage

CELLS: dict[str, Cell] = {
    "RNN_IDENTITY": RNN("identity"), "RNN_TANH": RNN("tanh"), "RNN_RELU": RNN("relu"), "GRU": GRU(), "LSTM": LSTM(),
    **{f"RATE_{name.upper()}": Rate(name) for name in ACTIVATIONS},
    **{f"VOLTAGE_{name.upper()}": Voltage(name) for name in ACTIVATIONS},
}  # fmt: skip
"""By torch.nn's names of modes, and ours."""
