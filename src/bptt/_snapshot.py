"""Noise and buffers as they were, so that a replayed segment is the segment that ran first.

Global random-number states (of the CPU, and of the tensors' device) are recorded before a segment's first evaluation
and restored for its replay. A replay runs on copies of the module's buffers as they were then: restoring them in place
would break tensors that batch norm has saved for its backward pass.
"""

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from bptt import _torch

Buffers = list[tuple[nn.Module, str, Tensor]]


def buffers_of(model: Callable[..., Any]) -> Buffers:
    """(module, name, tensor) of every buffer of a module; none for a plain function."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [(m, name, value) for m in modules for name, value in _torch.buffers(m).items() if value is not None]


class Noise(NamedTuple):
    """Random-number states: the CPU's, and those of the devices that the tensors live on."""

    cpu: Tensor
    device_type: str
    devices: list[int]
    states: list[Tensor]

    @classmethod
    def now(cls, tensors: Sequence[Tensor]) -> "Noise":
        """The states of the CPU and of the devices of `tensors`."""
        elsewhere = list({t.device: t for t in tensors if t.device.type not in ("cpu", "meta")}.values())
        devices, states = get_device_states(*elsewhere) if elsewhere else ([], [])
        return cls(torch.get_rng_state(), elsewhere[0].device.type if elsewhere else "cuda", devices, states)

    def equals(self, other: "Noise") -> bool:
        """Whether nothing was drawn between the two."""
        pairs = zip([self.cpu, *self.states], [other.cpu, *other.states], strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    def install(self) -> None:
        """Make them the current ones."""
        torch.set_rng_state(self.cpu)
        if self.devices:
            set_device_states(self.devices, self.states, device_type=self.device_type)


@contextmanager
def noise_restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Leave the random-number states as they were before the block."""
    before = Noise.now(tensors)
    try:
        yield
    finally:
        before.install()


def foreign_states() -> tuple[Any, Any]:
    """Random-number states that aren't torch's: Python's, and NumPy's where it is loaded."""
    numpy: Any = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else numpy.random.get_state()


def install_foreign(states: tuple[Any, Any]) -> None:
    """Make them the current ones."""
    random.setstate(states[0])
    if states[1] is not None:
        sys.modules["numpy"].random.set_state(states[1])


@contextmanager
def foreign_noise_restored() -> Iterator[None]:
    """Leave the random-number states that aren't torch's as they were before the block."""
    before = foreign_states()
    try:
        yield
    finally:
        install_foreign(before)


@contextmanager
def buffers_replaced(copies: Buffers) -> Iterator[None]:
    """Let the modules use `copies` in the block; afterwards they have their own buffers back, untouched."""
    own = [(module, name, _torch.buffers(module)[name]) for module, name, _ in copies]
    try:
        for module, name, value in copies:
            _torch.buffers(module)[name] = value
        yield
    finally:
        for module, name, value in own:
            _torch.buffers(module)[name] = value


class Snapshot:
    """The noise and buffers that an evaluation of a segment found, shared with the snapshot before if equal."""

    def __init__(self, model: Callable[..., Any], tensors: Sequence[Tensor], before: "Snapshot | None" = None) -> None:
        self.noise = Noise.now(tensors)
        self._tensors = tensors
        if before is not None and torch.equal(before.noise.cpu, self.noise.cpu) and not self.noise.devices:
            self.noise = before.noise
        own = buffers_of(model)
        self._seen = [(value, _torch.version(value)) for *_, value in own]
        if (
            before is not None
            and len(before._seen) == len(own)
            and all(a is b and v == w for (a, v), (b, w) in zip(before._seen, self._seen, strict=True))
        ):
            self.buffers = before.buffers
        else:
            self.buffers = [(module, name, value.clone()) for module, name, value in own]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Run the block as the first evaluation ran, and leave noise and buffers as they were before the block."""
        copies = [(module, name, value.clone()) for module, name, value in self.buffers]
        with noise_restored(self._tensors), buffers_replaced(copies):
            self.noise.install()
            yield


@contextmanager
def isolated(model: Callable[..., Any], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Leave noise and buffers as they were before the block, which sees their present values."""
    with Snapshot(model, tensors).installed():
        yield


@contextmanager
def no_gradient_yet(theta: list[Tensor]) -> Iterator[None]:
    """Let `.grad` be None, without hooks, which might step an optimiser; afterwards restore the user's own."""
    own = [(p, p.grad, _torch.gradient_hooks(p)) for p in theta]
    try:
        for p, _, hooks in own:
            p.grad = None
            if hooks:
                _torch.set_gradient_hooks(p, OrderedDict())  # None wouldn't take them away
        yield
    finally:
        for p, grad, hooks in own:
            p.grad = grad
            if hooks:
                _torch.set_gradient_hooks(p, hooks)


@contextmanager
def gradients_aside(leaves: list[Tensor]) -> Iterator[None]:
    """Leave `.grad` of these as it was."""
    before = [leaf.grad for leaf in leaves]
    try:
        yield
    finally:
        for leaf, grad in zip(leaves, before, strict=True):
            leaf.grad = grad


@contextmanager
def parameters_kept(*owners: Any) -> Iterator[None]:
    """Leave parameters as they were before the block: an embedding with max_norm scales the rows that it looks up.

    owners: modules, lists of tensors, or functions, which have no parameters.
    """
    found: list[Tensor] = []
    for owner in owners:
        found += owner.parameters() if isinstance(owner, nn.Module) else owner if isinstance(owner, list) else []
    kept = [(p, _torch.version(p), p.detach().clone()) for p in dict.fromkeys(found) if not p.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, version, before in kept:
                if _torch.version(p) != version:
                    p.copy_(before)


@contextmanager
def renormalised(model: Callable[..., Any], forward: Callable[[], None]) -> Iterator[None]:
    """Let one `forward` scale embeddings with max_norm, then leave them as they are for the block.

    Otherwise, steps recorded one by one would change the tables that earlier steps have saved.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    bounds = [(m, m.max_norm) for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm]
    if bounds:
        forward()
    try:
        for module, _ in bounds:
            module.max_norm = None
        yield
    finally:
        for module, bound in bounds:
            module.max_norm = bound


@contextmanager
def untouched(model: Any, loss: Any, tensors: Sequence[Tensor], params: Sequence[Tensor] = ()) -> Iterator[None]:
    """Leave noise, buffers and parameters as they were before a block that only looks.

    tensors: those of the computation, for their devices. params: parameters that model and loss don't register.
    """
    with isolated(model, tensors), isolated(loss, []), parameters_kept(model, loss, list(params)):
        yield
