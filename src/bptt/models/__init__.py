"""Models as recurrences, trained by the same calls as any other: of text, of series, and two that aren't networks."""

from bptt.models.flow import Flow
from bptt.models.forecaster import Forecaster
from bptt.models.fuzzy import TakagiSugeno
from bptt.models.network import Network
from bptt.models.text import CharModel, write

__all__ = ["CharModel", "Flow", "Forecaster", "Network", "TakagiSugeno", "write"]
