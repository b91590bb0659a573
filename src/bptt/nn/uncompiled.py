"""What torch.compile must leave alone."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from bptt import _torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def uncompiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep torch.compile from rewriting the function and what it calls; torch.export, which calls no kernel, may.

    A rewritten frame releases a tensor after the last use that it sees, and the kernels hold only addresses.
    (`torch.compiler.disable` does the same, but importing it costs a second, and each call some microseconds.)
    """

    @functools.wraps(function)
    def call(*args: _P.args, **keywords: _P.kwargs) -> _R:
        if torch.compiler.is_exporting():
            return function(*args, **keywords)
        if torch.compiler.is_dynamo_compiling() or _torch.frame_callback() not in (None, False):
            disabled: Any = torch.compiler.disable(function)
            return disabled(*args, **keywords)
        return function(*args, **keywords)

    return call
