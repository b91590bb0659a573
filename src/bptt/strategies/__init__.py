"""Strategies: which gradient is wanted, each a frozen value that yields windows."""

from bptt.strategies.adaptive import AdaptiveTruncatedBPTT
from bptt.strategies.artbp import ARTBP
from bptt.strategies.base import Strategy, says
from bptt.strategies.full import FullBPTT
from bptt.strategies.spec import parse
from bptt.strategies.truncated import TruncatedBPTT

__all__ = ["ARTBP", "AdaptiveTruncatedBPTT", "FullBPTT", "Strategy", "TruncatedBPTT", "parse", "says"]
