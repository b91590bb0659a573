"""Attributes and buffers that change from call to call: found by a few calls, read and set as tensors."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bptt import _torch, _tree
from bptt._errors import named
from bptt._guard.holders import Contents, Holder, same
from bptt._guard.kept import MOST, Kept

ABSENT: Any = type("Absent", (), {})
"""Stands for the value of an attribute that isn't there."""


class Attributes(Kept):
    """The buffers and attributes of a module and of the objects in it, but not what functions and classes hold."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.holders = [h for h in self.holders if h.each and h.kind in ("buffer", "attribute")]

    def _function(self, function: Any, depth: int) -> None:
        """Nothing: a function's variables aren't attributes of the module."""

    def _class(self, cls: type, depth: int) -> None:
        """Nothing: all instances share a class's attributes."""

    def _generator(self, thing: Any, path: str) -> None:
        """Nothing: noise isn't state."""


class Slot(NamedTuple):
    """One attribute that changes: the structure of its value, and what is in it.

    where: the number of its holder, and its key there. names: of its leaves in the state.
    kinds: Tensor, or the type of a number, or None for a leaf that stays as it is and is then in `fixed`.
    in_place: whether its tensors are written to.
    """

    where: tuple[int, Any]
    name: str
    structure: Any
    names: list[str]
    kinds: list[Any]
    fixed: list[Any]
    in_place: bool

    def value(self, state: dict[str, Tensor]) -> Any:
        """The attribute's value from a state, with numbers as numbers."""
        leaves = []
        for name, kind, fixed in zip(self.names, self.kinds, self.fixed, strict=True):
            if kind is None:
                leaves.append(fixed)
            elif kind is Tensor:
                leaves.append(state[name].clone() if self.in_place else state[name])
            else:
                leaves.append(kind(state[name].detach().item()))
        return _tree.unflatten(leaves, self.structure)

    def leaves(self, value: Any) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for the attribute's value after a call; raises ValueError if it isn't of the form seen."""
        leaves, structure = _form(value)
        kinds = [_kind(leaf) for leaf in leaves]
        if structure != self.structure or kinds != self.kinds:
            raise ValueError("another form")
        for name, kind, leaf, fixed in zip(self.names, kinds, leaves, self.fixed, strict=True):
            if kind is Tensor:
                yield name, leaf
            elif kind is not None:
                yield name, torch.tensor(leaf, dtype=_DTYPES[kind])
            elif not same(leaf, fixed):
                raise ValueError("another object")


_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}


class Seen(NamedTuple):
    """What the holders held at one moment: each value's leaves and structure, and marks that show a change."""

    forms: dict[tuple[int, Any], tuple[list[Any], Any]]
    marks: dict[tuple[int, Any], Any]

    @classmethod
    def now(cls, holders: list[Holder]) -> "Seen":
        forms, marks = {}, {}
        for i, holder in enumerate(holders):
            for key, value in holder.read().items():
                if key not in holder.steady:
                    forms[i, key] = _form(value)
                    marks[i, key] = _mark(value)
        return cls(forms, marks)


@dataclass(frozen=True)
class Found:
    """The attributes that form the state, among all that are looked at."""

    holders: list[Holder]
    slots: list[Slot]
    left: list[frozenset[Any]] = field(default_factory=list)

    @classmethod
    def of(cls, holders: list[Holder], seen: list[Seen], late: frozenset[str], module: nn.Module) -> "Found":
        """Find them from what was seen before and after each of a few calls."""
        keys = dict.fromkeys(key for one in seen for key in one.marks)
        slots: list[Slot] = []
        for where in keys:
            marks = [one.marks.get(where, ABSENT) for one in seen]
            name = holders[where[0]].name(where[1])
            if name in late or any(_differ(a, b) for a, b in pairwise(marks)):
                slots.append(_slot(where, name, seen, module))
        _check_memory(holders, slots, module)
        own = {slot.where for slot in slots}
        left = [holder.steady | {key for index, key in own if index == i} for i, holder in enumerate(holders)]
        return cls(holders, slots, left)

    def values(self, state: Any, module: nn.Module) -> list[Any]:
        """The attributes' values from a state that was passed in."""
        names = [name for slot in self.slots for name, kind in zip(slot.names, slot.kinds, strict=True) if kind]
        if not isinstance(state, dict) or state.keys() != set(names):
            got = ", ".join(map(str, state)) or "nothing" if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                f"explicit_state: the state of {named(module)} is a dict of {', '.join(names) or 'nothing'}, not of "
                f"{got}: pass one that it returned, or None."
            )
        return [slot.value(state) for slot in self.slots]

    def contents(self, values: list[Any]) -> dict[int, Contents]:
        """Values of the slots by holder and key."""
        found = dict[int, Contents]()
        for slot, value in zip(self.slots, values, strict=True):
            found.setdefault(slot.where[0], {})[slot.where[1]] = value
        return found

    def put(self, contents: dict[int, Contents], now: list[Contents]) -> None:
        """Put these values into the module's slots, and leave everything else as it is, which is `now`."""
        for index, own in contents.items():
            held = {**now[index], **own}
            self.holders[index].write({key: value for key, value in held.items() if value is not ABSENT})

    def state(self, after: list[Contents], module: nn.Module) -> dict[str, Tensor]:
        """The state after a call."""
        found: dict[str, Tensor] = {}
        for slot in self.slots:
            value = after[slot.where[0]].get(slot.where[1], ABSENT)
            try:
                found.update(slot.leaves(value))
            except ValueError:
                raise _refused(slot.name, module, "holds something else than after the first calls") from None
        return found

    def marks(self, contents: list[Contents]) -> list[Any]:
        """Marks of everything that isn't state."""
        return [
            {key: _mark(value) for key, value in held.items() if key not in left}
            for held, left in zip(contents, self.left, strict=True)
        ]

    def moved(self, marks: list[Any], after: list[Contents]) -> list[str]:
        """The names of what isn't state but has changed."""
        return [
            holder.name(key)
            for holder, old, new in zip(self.holders, marks, self.marks(after), strict=True)
            for key in {**old, **new}
            if _differ(old.get(key, ABSENT), new.get(key, ABSENT))
        ]


_CONTAINERS = (list, tuple, dict, deque)


def _slot(where: tuple[int, Any], name: str, seen: list[Seen], module: nn.Module) -> Slot:
    """The slot of an attribute that changes; raises ValueError if its value can't be a state."""
    forms = [one.forms.get(where) for one in seen[1:]]
    last, before = forms[-1], forms[-2]
    if last is None or before is None or last[1] != before[1]:
        raise _refused(name, module, "grows, shrinks or is deleted from call to call")
    leaves, structure = last
    kinds = [_kind(leaf) for leaf in leaves]
    if kinds != [_kind(leaf) for leaf in before[0]]:
        raise _refused(name, module, "is of another type after each call")
    for kind, leaf, old in zip(kinds, leaves, before[0], strict=True):
        if kind is None and not same(leaf, old):
            raise _refused(name, module, f"changes from call to call and holds a {type(leaf).__name__}")
    if found := [leaf for kind, leaf in zip(kinds, leaves, strict=True) if kind is None and not _plain(leaf)]:
        raise _refused(name, module, f"changes at the first call and holds a {type(found[0]).__name__}")
    value = _tree.unflatten(leaves, structure)
    names = [path for path, _ in _tree.named_leaves(value, name)] if isinstance(value, _CONTAINERS) else [name]
    written = any(a is b and isinstance(a, Tensor) for a, b in zip(leaves, before[0], strict=True))
    fixed = [leaf if kind is None else None for kind, leaf in zip(kinds, leaves, strict=True)]
    return Slot(where, name, structure, names, kinds, fixed, written)


def _check_memory(holders: list[Holder], slots: list[Slot], module: nn.Module) -> None:
    """Raise ValueError if a tensor that is written to shares its memory with another attribute."""
    owners: dict[int, set[str]] = {}
    for name, _, _, value in places(holders, now=False):
        for leaf in _form(value)[0]:
            if isinstance(leaf, Tensor):
                owners.setdefault(_torch.identity(leaf.untyped_storage()), set()).add(name)
    for names in owners.values():
        written = [slot.name for slot in slots if slot.in_place and slot.name in names]
        if written and len(names) > 1:
            others = ", ".join(sorted(names - {written[0]}))
            raise _refused(written[0], module, f"is written to and shares its memory with {others}")


def _refused(name: str, module: nn.Module, why: str) -> ValueError:
    return ValueError(
        f"explicit_state: the attribute {name} of {named(module)} {why}: a state is made of tensors and numbers in "
        f"attributes and buffers, as many after each call; keep it so, or outside of the module."
    )


def _form(value: Any) -> tuple[list[Any], Any]:
    """The leaves and the structure of a value; anything but a container is a leaf, even None."""
    return _tree.flatten(value) if isinstance(value, _CONTAINERS) else ([value], _tree.LEAF)


def _plain(leaf: Any) -> bool:
    """Whether nothing can change inside."""
    return leaf is None or isinstance(leaf, str | bytes)


def _kind(leaf: Any) -> Any:
    """Tensor, the type of a number, or None for what can't be part of a state."""
    return Tensor if isinstance(leaf, Tensor) else type(leaf) if type(leaf) in _DTYPES else None


def _mark(value: Any) -> Any:
    """A mark that shows a change: of a tensor, its identity and version; of anything else, its value."""
    if isinstance(value, Tensor):
        return _torch.version(value), value
    if isinstance(value, _CONTAINERS) and len(value) <= MOST:
        leaves, structure = _tree.flatten(value)
        return structure, [_mark(leaf) for leaf in leaves]
    return value


def _differ(one: Any, other: Any) -> bool:
    if one is other:
        return False
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:
        if isinstance(one[1], list) and isinstance(other[1], list):
            alike = one[0] == other[0] and len(one[1]) == len(other[1])
            return not alike or any(_differ(a, b) for a, b in zip(one[1], other[1], strict=True))
        return one[1] is not other[1] or one[0] != other[0]
    return not same(one, other)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with `function` applied to its tensors, in new containers."""
    if not isinstance(value, (Tensor, *_CONTAINERS)):
        return value
    return _tree.map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)


def copied(value: Any) -> Any:
    """A copy without a graph."""
    return mapped(lambda leaf: leaf.detach().clone(), value)


def places(holders: list[Holder], now: bool = True) -> Iterator[tuple[str, Holder, Any, Any]]:
    """(name, holder, key, value) of everything that is looked at, as it is now or was when it was found."""
    for holder in holders:
        for key, value in (holder.read() if now else holder.before).items():
            if key not in holder.steady:
                yield holder.name(key), holder, key, value
