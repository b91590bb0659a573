"""Places that hold values between calls: modules' and objects' attributes, containers, variables of closures."""

import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 2**26
"""Bytes above which a tensor is taken for data, not for a state, and isn't copied (buffers always are)."""
LARGEST_FIXED = 2**20
"""The same for parameters that don't require a gradient."""
Contents = dict[Any, Any]
Access = tuple[Callable[[], Contents], Callable[[Contents], None]]
_DATA = (Tensor, int, float, complex, str, bytes, list, tuple, dict, set, deque, types.NoneType, types.SimpleNamespace)


@dataclass
class Holder:
    """A place that holds values under keys, with what it held when it was found.

    kind: "buffer", "attribute", ... as errors call it. name: of the value under a key.
    read, write: get and set what it holds. each: whether its values count separately by key; a list or dict is one.
    steady: keys of running statistics and power iterations.
    """

    kind: str
    name: Callable[[Any], str]
    read: Callable[[], Contents]
    write: Callable[[Contents], None]
    each: bool = True
    steady: frozenset[Any] = frozenset()
    before: Contents = field(default_factory=dict)

    def put(self, contents: Contents) -> None:
        """Write only what differs, so that what is already right isn't touched."""
        now = self.read()
        order = self.each or list(now) == list(contents)
        if now.keys() != contents.keys() or not order or any(now[k] is not contents[k] for k in contents):
            self.write(contents)

    def changed(self) -> list[Any]:
        """The keys whose values are no longer as they were at first; a list or dict has one key, None."""
        now = self.read()
        both = now.keys() & self.before.keys()
        keys = [k for k in {**self.before, **now} if k not in both or not same(now[k], self.before[k])]
        return keys if self.each or not keys else [None]


def fresh(value: Any, copies: dict[int, Any], kind: str) -> Any:
    """A copy of a tensor or array, or of tuples that hold any; anything else as it is.

    Parameters and tensors that require a gradient aren't copied, nor are large tensors, which are data.
    """
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor):
        copy = _fresh_tensor(value, kind)
    elif isinstance(value, tuple):
        parts = [fresh(part, copies, kind) for part in value]
        changed = any(new is not old for new, old in zip(parts, value, strict=True))
        copy = value if not changed else type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    elif type(value).__name__ == "ndarray" and value.nbytes <= LARGEST:
        copy = value.copy()
    else:
        return value
    copies[id(value)] = copy
    return copy


def _fresh_tensor(value: Tensor, kind: str) -> Tensor:
    if kind == "buffer":
        return value.detach().clone()
    if kind == "parameter" and value.nbytes <= LARGEST_FIXED:
        return nn.Parameter(value.detach().clone(), requires_grad=False)
    asks = isinstance(value, nn.Parameter) or (value.requires_grad and value.is_leaf)
    if asks or type(value) is not Tensor or value.layout != torch.strided or value.nbytes > LARGEST:
        return value
    return value.detach().clone()


def same(one: Any, other: Any, depth: int = 0) -> bool:
    """Whether two values are equal in all that matters here, NaN equal to NaN."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and _equal(one.detach(), other.detach())
    if isinstance(one, int | float | complex | str | bytes):
        return one == other or (one != one and other != other)
    if type(one).__name__ == "ndarray":
        return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if depth > 6 or not isinstance(one, dict | list | tuple | deque) or len(one) != len(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k], depth + 1) for k in one)
    return all(same(a, b, depth + 1) for a, b in zip(one, other, strict=True))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.device != other.device or one.is_meta or one.layout != other.layout or one.layout != torch.strided:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def of_the_user(thing: Any) -> bool:
    """Whether a class or a function is neither torch's, ours nor the standard library's."""
    top = (getattr(thing, "__module__", None) or "builtins").split(".")[0]
    return top not in ("torch", "bptt", "numpy") and top not in sys.stdlib_module_names


def is_data(value: Any) -> bool:
    """Whether a global variable or class attribute with this value matters: it is data, or the user's function."""
    if isinstance(value, type | types.ModuleType | types.FunctionType):
        return isinstance(value, types.FunctionType) and of_the_user(value)
    return isinstance(value, (*_DATA, nn.Module, torch.Generator, random.Random)) or of_the_user(type(value))


def everything(_: Any) -> bool:
    """Any key, any value."""
    return True


def attributes(
    held: Any,
    mine: Callable[[Any], bool] = everything,
    kind: Callable[[Any], bool] = everything,
    without: frozenset[str] = frozenset(),
) -> Access:
    """The keys of a namespace that are `mine`, none of those `without`, with values of this `kind`."""

    def read() -> Contents:
        found = {k: v for k, v in held.copy().items() if k not in without}
        if mine is everything and kind is everything:  # called often, so fast
            return found
        return {k: v for k, v in found.items() if mine(k) and kind(v)}

    def write(contents: Contents) -> None:
        for key in read():
            if key not in contents:
                del held[key]
        held.update(contents)

    return read, write


def container(held: Any) -> Access:
    """A dict, list, deque or set, as a whole and in its order."""

    def read() -> Contents:
        items = held if isinstance(held, dict) else enumerate(held)
        return dict.fromkeys(held) if isinstance(held, set) else dict(items)

    def write(contents: Contents) -> None:
        held.clear()
        if isinstance(held, dict | set):
            held.update(contents)
        else:
            held.extend(contents.values())

    return read, write


def filled(cell: Any) -> bool:
    """Whether a closure's variable is bound yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def cells(closed: dict[str, Any]) -> Access:
    """The variables of a closure."""

    def read() -> Contents:
        return {name: cell.cell_contents for name, cell in closed.items() if filled(cell)}

    def write(contents: Contents) -> None:
        for name in read():
            if name not in contents:
                del closed[name].cell_contents
        for name, value in contents.items():
            closed[name].cell_contents = value

    return read, write


def named(thing: Any, names: Iterable[str]) -> Access:
    """Attributes of an object without a dict, or of a class."""
    setter = type.__setattr__ if isinstance(thing, type) else object.__setattr__
    held = list(names)

    def read() -> Contents:
        return {name: getattr(thing, name) for name in held if hasattr(thing, name)}

    def write(contents: Contents) -> None:
        now = read()
        for name in now:
            if name not in contents:
                delattr(thing, name)
        for name, value in contents.items():
            if now.get(name, held) is not value:
                setter(thing, name, value)

    return read, write
