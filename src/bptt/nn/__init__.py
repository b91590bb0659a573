"""Recurrent modules, and the initialisers that go with them."""

from bptt.nn import init
from bptt.nn.recurrent import GRU, LSTM, RNN, convert
from bptt.nn.simple import SimpleRNN

__all__ = ["GRU", "LSTM", "RNN", "SimpleRNN", "convert", "init"]
