"""Models that are no neural networks, as recurrences: trained by the same calls as any other."""

from bptt.models.flow import Flow

__all__ = ["Flow"]
