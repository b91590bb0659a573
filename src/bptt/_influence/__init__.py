"""The influence J = ∂s/∂θ, carried forward from window to window: equation (3) of the architecture page."""

from typing import Any

from bptt import _tree
from bptt._errors import named
from bptt._influence.base import Influence
from bptt._influence.by_unit import ByUnit
from bptt._influence.exact import Exact
from bptt._influence.masked import Masked
from bptt._influence.product import Product
from bptt._options import Options
from bptt._torch import unwrapped
from bptt._tree import Tree
from bptt.strategies.base import says

__all__ = ["Influence", "check_carried", "influence_of", "resumed"]


def influence_of(strategy: Any, options: Options) -> Influence | None:
    """What a strategy carries, zero so far; None where it carries nothing."""
    carry = says(strategy, "carries")
    if carry is None:
        return None
    if carry.kind == "product":
        return Product(options, carry.epsilon)
    return Masked(options, carry.order) if carry.kind == "masked" else Exact(options)


def resumed(influence: Influence, saved: dict[str, Any], like: Tree) -> Influence:
    """What a saved run carried, loaded in place of `influence`. like: a state of the run."""
    influence = ByUnit.resumed(influence) if "units" in saved else influence
    influence.load_state_dict(saved, like)
    return influence


def check_carried(strategy: Any, options: Options) -> None:
    """ValueError for options that don't go with a strategy that carries something."""
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
                f"{bad[0]} carries a graph, through which {strategy!r} passes on nothing of later windows: detach it, "
                f"pass initial_state= a function that computes it, or use bptt.FullBPTT()."
            )
