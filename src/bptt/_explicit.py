"""`explicit_state`: turns a module that keeps a state inside into a recurrence whose state is passed and returned."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _tree
from bptt._errors import named
from bptt._guard.holders import Contents
from bptt._guard.kept import Kept
from bptt._guard.slots import ABSENT, Attributes, Found, Seen, copied, mapped, places
from bptt._snapshot import foreign_noise_restored, noise_restored
from bptt._tree import Tree

CALLS = 3
"""How many calls without a graph are made, once, to see what changes from one to the next."""


def explicit_state(module: nn.Module) -> "ExplicitState":
    """Make a recurrence of a module that keeps its state in attributes or buffers between calls.

    Spiking layers keep their membranes like that, and some layers their hidden state. Steps are run more than once
    here, so a state that hides in the module is refused; `explicit_state` makes it a state like any other:

        y_t, s_t = F(x_t, s_{t-1}),  s: the attributes and buffers that change from call to call        (1)

    module: an `nn.Module` that is called with inputs alone, those of one step (B, ...) or of a sequence (T, B, ...).
        The recurrence has the inputs and outputs of one such call, so a module that takes single steps goes through
        `scan`.

    Returns a module `(inputs, state=None) -> (outputs, state)` that holds yours as `.module`. Its state is a dict of
    tensors by name, such as "lif1.mem" or "hidden[0]", with their graph: all attributes and buffers of the module, of
    its submodules and of objects in its attributes that change from call to call; {} if none does. A number that
    changes, such as a counter, is a 0-d tensor in the dict and a number again inside the module.
    state=None starts from copies of what the module held when `explicit_state` was called, whatever that was: None, 0.0
    or an empty tensor will do. After each call the module holds what it held before it. Parameters, random-number
    generators, running statistics of normalisation layers and power iterations aren't state and are left as they are.
    A reset of single rows needs `state_batch_dim=`, 0 for most modules, and leaves 0-d tensors as they are.

    Raises TypeError if `module` isn't a module that is called with inputs alone. The recurrence raises ValueError,
    which names the attribute, for an attribute that changes and is neither a tensor nor a number, for a list or dict
    that grows, for two attributes that share memory, and, once, for an attribute that first changes at a later call: it
    is known from then on. Variables of closures, global variables and class attributes aren't looked at.
    Cost: a copy of the buffers and of the tensors in attributes; three more calls without a graph at the first call; at
    each call a check of all attributes, about ten microseconds per submodule.

    >>> import bptt, torch
    >>> class Leaky(torch.nn.Module):
    ...     membrane = None
    ...     def forward(self, x):
    ...         self.membrane = x if self.membrane is None else 0.5 * self.membrane + x
    ...         return self.membrane
    >>> recurrence = bptt.scan(bptt.explicit_state(Leaky()))
    >>> outputs, state = recurrence(torch.ones(3, 1), None)
    >>> state
    {'membrane': tensor([1.7500])}
    >>> recurrence(torch.ones(1, 1), state)[0]
    tensor([[1.8750]])
    """
    if not isinstance(module, nn.Module):
        what = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"explicit_state: module must be an nn.Module, not {what}.")
    try:
        inspect.signature(module.forward).bind(None)
    except TypeError:
        raise TypeError(
            f"explicit_state: module={named(module)} can't be called as module(inputs). One that takes its state as an "
            f"argument needs no explicit_state."
        ) from None
    return ExplicitState(module)


class ExplicitState(nn.Module):
    """`explicit_state` of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._initial = {name: copied(value) for name, _, _, value in places(Attributes(module).holders)}
        self._late: frozenset[str] = frozenset()
        self._found: Found | None = None

    def forward(self, inputs: Tree, state: Any = None) -> tuple[Tree, dict[str, Tensor]]:
        """One call of the module from `state`."""
        if self._found is None:
            self._found = self._look(inputs)
        found = self._found
        if state is None:
            values = [copied(self._initial.get(slot.name, ABSENT)) for slot in found.slots]
        else:
            values = found.values(state, self.module)
        before = [holder.read() for holder in found.holders]
        marks = found.marks(before)
        own = found.contents([before[slot.where[0]].get(slot.where[1], ABSENT) for slot in found.slots])
        try:
            found.put(found.contents(values), before)
            outputs = self.module(inputs)
        finally:
            after = [holder.read() for holder in found.holders]
            found.put(own, after)
        self._nothing_else(found, marks, after)
        return outputs, found.state(after, self.module)

    def _look(self, inputs: Tree) -> "Found":
        """What changes in a few calls, starting from what the module holds; everything is put back afterwards."""
        if any(nn.parameter.is_lazy(tensor) for tensor in (*self.module.parameters(), *self.module.buffers())):
            raise ValueError(
                f"explicit_state: {named(self.module)} makes its parameters at the first call: call it once."
            )
        kept, own = Kept(self.module), Attributes(self.module)
        with noise_restored(_tree.leaves(inputs)), foreign_noise_restored(), torch.no_grad():
            try:
                kept.lend()
                seen = [Seen.now(own.holders)]
                for _ in range(CALLS):
                    self.module(inputs)
                    seen.append(Seen.now(own.holders))
            finally:
                kept.restore()
        return Found.of(own.holders, seen, self._late, self.module)

    def _nothing_else(self, found: "Found", marks: list[Any], after: list[Contents]) -> None:
        """Raise ValueError if something changed that isn't part of the state; from then on it is part of it."""
        names = found.moved(marks, after)
        if not names:
            return
        for name, holder, key, value in places(found.holders):
            if name in names and isinstance(value, Tensor):  # it may have been written to
                holder.put({**holder.read(), key: copied(self._initial.get(name, value))})
        self._late, self._found = self._late | set(names), None
        state = ", ".join(slot.name for slot in found.slots) or "nothing"
        raise ValueError(
            f"explicit_state: the attribute {names[0]} of {named(self.module)} changed for the first time after the "
            f"{CALLS} calls by which the state was found to be {state}: it is part of the state from now on, so run "
            f"this again from state=None."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExplicitState":
        """Move or cast the first state with the module."""
        super()._apply(fn, recurse)
        self._initial = {name: mapped(fn, value) for name, value in self._initial.items()}
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was found, which belongs to this module: a copy looks for itself."""
        return {**self.__dict__, "_found": None}
