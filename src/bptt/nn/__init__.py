"""Recurrent modules, and the initialisers that go with them."""

from bptt.nn import init
from bptt.nn.simple import SimpleRNN

__all__ = ["SimpleRNN", "init"]
