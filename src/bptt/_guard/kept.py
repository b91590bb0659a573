"""What a callable keeps between its calls: found as far as Python allows, lent as copies, and restored.

It may be in buffers and attributes of modules and other objects, containers in them, variables of closures, functions'
own attributes and default values, class attributes, global variables that a function names, random-number generators.
"""

import functools
import random
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bptt import _torch
from bptt._guard.holders import (
    Access,
    Holder,
    attributes,
    cells,
    container,
    everything,
    fresh,
    is_data,
    named,
    of_the_user,
)

MOST = 10_000
"""Number of entries above which a container's contents aren't looked at."""
DEEPEST = 12
_OWN = frozenset(nn.Module().__dict__)
_LEAVES = (Tensor, type, types.ModuleType, str, bytes, int, float, complex, types.NoneType)


class Kept:
    """Everything that some callables keep; from the first `lend` to `restore` they work on copies of it."""

    def __init__(self, *things: Any) -> None:
        self.holders: list[Holder] = []
        self._seen: dict[int, Any] = {}
        for thing in things:
            self._walk(thing, "", 0)

    def lend(self, wanted: Callable[[Holder, Any], bool] = lambda holder, key: True) -> None:
        """Give the callables fresh copies of what was there at first, under the keys that are `wanted`."""
        copies: dict[int, Any] = {}
        for holder in self.holders:
            now = holder.read()
            keys = [k for k in {**holder.before, **now} if wanted(holder, k if holder.each else None)]
            if keys:
                old = {k: fresh(v, copies, holder.kind) for k, v in holder.before.items() if k in keys}
                holder.put({**old, **{k: v for k, v in now.items() if k not in keys}})

    def restore(self) -> None:
        """Restore the very objects that were there at first."""
        for holder in self.holders:
            holder.put(holder.before)

    @contextmanager
    def normalised_as_in_evaluation(self) -> Iterator[None]:
        """Let batch norm use its running statistics for the block."""
        layers = [m for m in self._seen.values() if isinstance(m, _torch.NormBase) and m.training]
        try:
            for layer in layers:
                layer.__dict__["training"] = False
            yield
        finally:
            for layer in layers:
                layer.__dict__["training"] = True

    def changed(self) -> list[tuple[Holder, Any]]:
        """(holder, key) of everything that is no longer as it was at first."""
        return [(holder, key) for holder in self.holders for key in holder.changed()]

    def _add(self, kind: str, name: Callable[[Any], str], access: Access, **more: Any) -> dict[Any, Any]:
        holder = Holder(kind, name, *access, **more)
        holder.before = holder.read()
        if holder.before or kind in ("attribute", "global variable"):
            self.holders.append(holder)
        return holder.before

    def _walk(self, thing: Any, path: str, depth: int) -> None:
        """Add the holders that can be reached from `thing`. path: what errors call it."""
        if depth > DEEPEST or isinstance(thing, _LEAVES) or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            self._modules(thing, path, depth)
        elif isinstance(thing, dict | list | deque | set | tuple):
            self._container(thing, path, depth)
        elif isinstance(thing, types.FunctionType):
            self._function(thing, depth)
        elif isinstance(thing, types.MethodType):
            self._walk(thing.__self__, path or type(thing.__self__).__name__, depth + 1)
            self._walk(thing.__func__, path, depth + 1)
        elif isinstance(thing, functools.partial):
            for part in (thing.func, thing.args, thing.keywords):
                self._walk(part, path or "partial", depth + 1)
        elif isinstance(thing, torch.Generator | random.Random):
            self._generator(thing, path)
        elif of_the_user(type(thing)) or isinstance(thing, types.SimpleNamespace):
            self._object(thing, path, depth)

    def _modules(self, root: nn.Module, path: str, depth: int) -> None:
        for name, module in root.named_modules():
            self._seen[id(module)] = module
            name_of = _after(".".join(part for part in (path, *name.split(".")) if part and part != _torch.WRAPPED))
            self._add("buffer", name_of, attributes(_torch.buffers(module)), steady=frozenset(steady(module)))
            self._add("parameter", name_of, attributes(_torch.parameters(module), kind=_is_fixed))
            own = of_the_user(type(module))
            if own or type(module).__module__.startswith(("torch.nn.modules.", "bptt.nn.")):
                mine = everything if own else _public
                for key, value in self._attributes(module, name_of, mine):
                    self._walk(value, name_of(key), depth + 1)
            for hook in _torch.call_hooks(module):
                self._walk(hook, name_of("hook"), depth + 1)
            self._class(type(module), depth)

    def _attributes(self, module: nn.Module, name_of: Callable[[Any], str], mine: Callable[[Any], bool]) -> Any:
        hooks = [hook for hook in _torch.call_hooks(module) if isinstance(hook, SpectralNorm | WeightNorm)]
        made = frozenset(hook.name for hook in hooks)  # from parameters, before each call
        return self._add("attribute", name_of, attributes(module.__dict__, mine, without=_OWN), steady=made).items()

    def _container(self, thing: Any, path: str, depth: int) -> None:
        if not isinstance(thing, tuple):
            self._add("attribute", _always(path), container(thing), each=False)
        if len(thing) <= MOST:
            for key, value in list(thing.items() if isinstance(thing, dict) else enumerate(thing)):
                self._walk(value, f"{path}[{key!r}]", depth + 1)

    def _function(self, function: types.FunctionType, depth: int) -> None:
        """Its closure, attributes and default values, and the global variables that its code names."""
        of = f" of the function {function.__name__}"
        closed = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        places = [("variable", cells(closed)), ("attribute", attributes(function.__dict__))]
        if of_the_user(types.SimpleNamespace(__module__=function.__globals__.get("__name__"))):
            names = set(_names(function.__code__))
            places.append(("global variable", attributes(function.__globals__, names.__contains__, is_data)))
        for kind, access in places:
            for key, value in self._add(kind, lambda key: f"{key}{of}", access).items():
                self._walk(value, key, depth + 1)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._walk(value, f"default value{of}", depth + 1)

    def _object(self, thing: Any, path: str, depth: int) -> None:
        path = path or type(thing).__name__
        slots = [slot for cls in type(thing).__mro__ for slot in _slots(cls)]
        places = [named(thing, slots)] if slots else []
        if isinstance(getattr(thing, "__dict__", None), dict):
            places.append(attributes(thing.__dict__))
        for access in places:
            for key, value in self._add("attribute", _after(path), access).items():
                self._walk(value, _after(path)(key), depth + 1)
        self._class(type(thing), depth)

    def _class(self, cls: type, depth: int) -> None:
        """Class attributes, and the functions of a class with what they refer to."""
        for base in cls.__mro__:
            if not of_the_user(base) or id(base) in self._seen:
                continue
            self._seen[id(base)] = base
            data = [k for k, v in vars(base).items() if k[:2] != "__" and k not in _slots(base) and is_data(v)]
            data = [k for k in data if not isinstance(vars(base)[k], types.FunctionType)]
            for key, value in self._add("class attribute", _after(base.__name__), named(base, data)).items():
                self._walk(value, f"{base.__name__}.{key}", depth + 1)
            for value in list(vars(base).values()):
                function = getattr(value, "__func__", value)
                if isinstance(function, types.FunctionType):
                    self._walk(function, "", depth + 1)

    def _generator(self, thing: Any, path: str) -> None:
        if isinstance(thing, random.Random):
            access = lambda: {0: thing.getstate()}, lambda contents: thing.setstate(contents[0])
        else:
            access = lambda: {0: thing.get_state()}, lambda contents: thing.set_state(contents[0])
        self._add("generator", _always(path), access)


def steady(module: nn.Module) -> Iterator[str]:
    """The names of a module's buffers that are running statistics or belong to a power iteration."""
    every = isinstance(module, _torch.NormBase | _torch.PowerIteration) or "norm" in type(module).__name__.lower()
    hooks = [hook for hook in _torch.call_hooks(module) if isinstance(hook, SpectralNorm)]
    iterated = {f"{hook.name}_{end}" for hook in hooks for end in "uv"}
    for name in _torch.buffers(module):
        if every or name in iterated or name in ("running_mean", "running_var", "num_batches_tracked"):
            yield name


def _is_fixed(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.requires_grad


def _public(key: str) -> bool:
    return not key.startswith("_")


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    slots = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(slot for slot in slots if slot[:2] != "__")


def _after(path: str) -> Callable[[Any], str]:
    return lambda key: f"{path}.{key}" if path else str(key)


def _always(path: str) -> Callable[[Any], str]:
    return lambda key: path
