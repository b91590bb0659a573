"""Models that aren't neural networks, as recurrences: trained by the same calls as any other."""

from bptt.models.flow import Flow
from bptt.models.fuzzy import TakagiSugeno

__all__ = ["Flow", "TakagiSugeno"]
