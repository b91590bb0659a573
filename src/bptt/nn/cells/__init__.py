"""The recurrent cells, a file each: what the passes over a sequence know of them, whatever computes."""

from bptt.nn.cells.base import Cell
from bptt.nn.cells.gru import GRU
from bptt.nn.cells.lstm import LSTM
from bptt.nn.cells.rnn import RNN

CELLS: dict[str, Cell] = {
    "RNN_IDENTITY": RNN("identity"), "RNN_TANH": RNN("tanh"), "RNN_RELU": RNN("relu"), "GRU": GRU(), "LSTM": LSTM()
}  # fmt: skip
"""By torch.nn's names of modes, and ours."""
