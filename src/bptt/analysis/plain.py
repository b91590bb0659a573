"""Results as plain data, which JSON holds, and back: dataclasses by their fields, in the types that these declare."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bptt.strategies.adaptive import AdaptiveTruncatedBPTT
from bptt.strategies.artbp import ARTBP
from bptt.strategies.base import Strategy, says
from bptt.strategies.full import FullBPTT
from bptt.strategies.laws import ConstantLaw, PolynomialLaw
from bptt.strategies.online import RTRL
from bptt.strategies.snap import SnAp
from bptt.strategies.truncated import TruncatedBPTT
from bptt.strategies.uoro import UORO

KNOWN = (FullBPTT, TruncatedBPTT, AdaptiveTruncatedBPTT, ARTBP, ConstantLaw, PolynomialLaw, RTRL, UORO, SnAp)
BY_FIELDS: dict[str, Any] = {each.__name__: each for each in KNOWN}
"""Strategies and laws that are written as the name of their class and their fields."""


def to_plain(value: Any) -> Any:
    """Numbers, texts, lists and dictionaries with texts as keys. NaN becomes None, a tensor nested lists.

    Raises: TypeError for a strategy or law that this library doesn't know.
    """
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Tensor):
        return to_plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    if type(value) is BY_FIELDS.get(type(value).__name__):
        return {"class": type(value).__name__, **_fields(value)}
    if callable(getattr(value, "windows", None)) or not dataclasses.is_dataclass(value):
        raise TypeError(
            f"to_dict: {value!r} is of a class that only your own code knows, so that nothing could read it back. "
            f"Take records(), which says it as text."
        )
    return _fields(value)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}


def from_plain(kind: Any, value: Any) -> Any:
    """A value of type `kind` from what `to_plain` made of one.

    Raises: ValueError, TypeError or KeyError for anything else.
    """
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        plain = next(each for each in inside if each is not types.NoneType)
        return None if value is None else from_plain(plain, value)
    if kind is float:
        return math.nan if value is None else _of(value, int | float)
    if kind is Tensor:
        return _tensor(value)
    if kind in (Strategy, Any) or kind in BY_FIELDS.values():
        return _by_fields(value)
    if origin is tuple:
        if len(inside) == 2 and inside[1] is Ellipsis:
            return tuple(from_plain(inside[0], each) for each in _of(value, list))
        return tuple(from_plain(each, part) for each, part in zip(inside, _of(value, list), strict=True))
    if origin is list:
        return [from_plain(inside[0], each) for each in _of(value, list)]
    if origin is dict:
        of_key, of_value = inside
        return {of_key(key): from_plain(of_value, each) for key, each in _of(value, dict).items()}
    if hasattr(kind, "__dataclass_fields__"):
        return kind(**_typed(kind, _of(value, dict)))
    if hasattr(kind, "_fields"):  # a named tuple
        return kind(**_typed(kind, dict(zip(kind._fields, _of(value, list), strict=True))))
    return _of(value, kind)


def _typed(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    if missing := [
        field.name for field in getattr(kind, "__dataclass_fields__", {}).values() if field.name not in values
    ]:
        raise KeyError(missing[0])
    return {name: from_plain(hints[name], each) for name, each in values.items()}


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r} is no {getattr(kind, '__name__', 'number')}")
    return value


def _tensor(value: Any) -> Tensor:
    def numbers(each: Any) -> Any:
        return list(map(numbers, each)) if isinstance(each, list) else math.nan if each is None else each

    return torch.tensor(numbers(_of(value, list)), dtype=torch.float64)


def _by_fields(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("class") not in BY_FIELDS:
        return value
    fields = {name: _by_fields(each) for name, each in value.items() if name != "class"}
    return BY_FIELDS[value["class"]](**fields)


def label(strategy: Any) -> str:
    """A strategy as a short text: its spec where it has one, else its value without the fields that are as usual.

    >>> import bptt
    >>> label(bptt.TruncatedBPTT(k1=5, k2=50)), label(bptt.ARTBP(bptt.ConstantLaw(8), every=4))
    ('tbptt:5:50', 'ARTBP(law=ConstantLaw(mean_length=8), every=4)')
    """
    return says(strategy, "spec") or _short(strategy)


def _short(value: Any) -> str:
    if type(value) is not BY_FIELDS.get(type(value).__name__):
        return repr(value)
    given = []
    for field in dataclasses.fields(value):
        usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if (each := getattr(value, field.name)) != usual:
            given.append(f"{field.name}={_short(each)}")
    return f"{type(value).__name__}({', '.join(given)})"
