"""Strategies: which gradient is wanted, each a frozen value that yields windows."""

from bptt.strategies.adaptive import AdaptiveTruncatedBPTT
from bptt.strategies.artbp import ARTBP
from bptt.strategies.base import Strategy, says
from bptt.strategies.full import FullBPTT
from bptt.strategies.online import RTRL
from bptt.strategies.snap import SnAp
from bptt.strategies.spec import parse
from bptt.strategies.truncated import TruncatedBPTT
from bptt.strategies.uoro import UORO

__all__ = [
    "ARTBP",
    "RTRL",
    "UORO",
    "AdaptiveTruncatedBPTT",
    "FullBPTT",
    "SnAp",
    "Strategy",
    "TruncatedBPTT",
    "parse",
    "says",
]
