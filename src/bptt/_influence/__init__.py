"""The influence J = ∂s/∂θ, carried forward from window to window: equation (3) of the architecture page."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _tree
from bptt._errors import named
from bptt._guard.reached import in_sight
from bptt._influence.base import Influence, Source
from bptt._influence.by_unit import ByUnit
from bptt._influence.exact import Exact
from bptt._influence.masks import Masks
from bptt._influence.product import Product
from bptt._machine import memory_here
from bptt._options import Options
from bptt._segment import Span
from bptt._snapshot import Snapshot
from bptt._torch import unwrapped
from bptt._tree import Tree
from bptt.strategies.base import says

__all__ = ["Influence", "check_carried", "entered", "influence_of", "resumed"]


def influence_of(strategy: Any, options: Options) -> Influence | None:
    """What a strategy carries, zero at first; None if it carries nothing."""
    carry, p, initial = says(strategy, "carries"), options.problem, options.initial_state
    if carry is None:
        return None
    learned = callable(initial) or any(leaf.requires_grad for leaf in _tree.leaves(initial))
    source = Source(replace(p, model=unwrapped(p.model)), options.state, learned, _names(options))
    if carry.kind == "product":
        return Product(source, carry.epsilon, options.generator)
    return Exact(source, Masks(carry.order) if carry.kind == "masked" else None)


def entered(influence: Influence, span: Span, before: Snapshot | None) -> tuple[Span, Snapshot, Influence]:
    """A window with what is carried into it, the noise that it finds, and the influence from now on.

    before: the noise that the window before found. The first window shows whether everything that is kept can be
    carried unit by unit.
    """
    window = span.window
    if window.start < window.first or window.keep < window.stop or window.weights:
        raise ValueError(f"{window} overlaps others or has weights, so nothing can be carried across its edges.")
    noise, first = Snapshot(span.problem.model, span.tensors, before), influence.rows is None
    influence.begin(span)
    if first and isinstance(influence, Exact):
        alone = influence.masks is None or influence.masks.order > 1
        influence = ByUnit.of(influence, span, alone) or influence
    if first:
        _must_have_room(influence)
    return (replace(span, enter=influence.enter) if window.start else span), noise, influence


def _must_have_room(influence: Influence) -> None:
    """Raise ValueError for more than the machine's memory, which is found out here before anything is filled."""
    assert influence.rows is not None
    needed, here = influence.nbytes, memory_here()
    if influence.rows.device == torch.device("cpu") and needed > here:
        raise ValueError(
            f"∂s/∂θ, which is carried, would take {needed / 2**30:,.1f} GiB, and {here / 2**30:,.1f} GiB can be had: "
            f"carry less, by bptt.UORO(), or by bptt.SnAp(order=1) of one layer of bptt.nn, or give fewer batch rows."
        )


def resumed(influence: Influence, saved: dict[str, Any], like: Tree) -> Influence:
    """What a saved run carried, to replace `influence`. like: a state of the run."""
    influence = ByUnit.resumed(influence) if "units" in saved else influence
    influence.load_state_dict(saved, like)
    return influence


def _names(options: Options) -> dict[str, Tensor]:
    """The parameters whose influence may be saved, by names that are the same in other processes."""
    p, found = options.problem, {}
    model = unwrapped(p.model)
    found |= dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    found |= {f"params[{i}]": leaf for i, leaf in enumerate(p.params or ())}
    found |= {f"initial_state[{i}]": leaf for i, leaf in enumerate(in_sight(options.initial_state, {}))}
    return found | {f"state[{i}]": leaf for i, leaf in enumerate(_tree.leaves(options.state))}


def check_carried(strategy: Any, options: Options) -> None:
    """Raise ValueError for options that don't go with a strategy that carries something."""
    if says(strategy, "carries") is None:
        return
    p = options.problem
    if p.clip is not None:
        raise ValueError(
            f"clip_cotangent={p.clip!r}: {strategy!r} carries ∂s/∂θ as it is, which no bound on cotangents acts on: "
            f"leave it out, and clip gradients."
        )
    if p.params is None and not hasattr(unwrapped(p.model), "parameters"):
        raise ValueError(
            f"{strategy!r} carries ∂s/∂θ, and {named(p.model)} is a plain function, which doesn't say what θ is: pass "
            f"params= with the tensors that it is to learn."
        )
    if any(not leaf.is_leaf for leaf in p.params or ()):
        raise ValueError(
            f"params=: {strategy!r} needs leaves, and an entry is computed from other tensors: pass those."
        )
    for tree, name in ((options.state, "state"), (options.initial_state, "initial_state")):
        bad = None if callable(tree) else _tree.fault(tree, name, lambda leaf: leaf.grad_fn is not None)
        if bad is not None:
            raise ValueError(
                f"{bad[0]} carries a graph, and {strategy!r} passes no gradient of later windows through it: detach "
                f"it, pass initial_state= a function that computes it, or use bptt.FullBPTT()."
            )
