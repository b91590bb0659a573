"""Recurrent modules, and the initialisers that go with them."""

from bptt.nn import init
from bptt.nn.constraints import Dale, Masked
from bptt.nn.ctrnn import CTRNN
from bptt.nn.lru import LRU
from bptt.nn.readout import LinearCrossEntropyLoss
from bptt.nn.recurrent import GRU, LSTM, RNN, convert
from bptt.nn.simple import SimpleRNN

__all__ = [
    "CTRNN",
    "GRU",
    "LRU",
    "LSTM",
    "RNN",
    "Dale",
    "LinearCrossEntropyLoss",
    "Masked",
    "SimpleRNN",
    "convert",
    "init",
]
