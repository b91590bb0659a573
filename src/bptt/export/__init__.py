"""Trained recurrences for use without bptt: as ONNX, and as a module in plain torch."""

from bptt.export.onnx import to_onnx
from bptt.export.plain import to_torch

__all__ = ["to_onnx", "to_torch"]
