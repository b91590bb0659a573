"""Losses that mix steps: a function of all outputs of a window at once."""

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _errors, _recurrence, _tree
from bptt._errors import NonFiniteLossError
from bptt._tree import Tree
from bptt.strategies.windows import Window


class PerWindow:
    """What `per_window` returns; it is called like the function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Tree) -> Any:
        """The function's own value."""
        return self.function(*args)


def per_window(function: Callable[..., Any]) -> PerWindow:
    """A loss of a whole window, which need not be a sum over steps: energy ratios, spectra, CTC, normalised advantages.

        L = Σ_w f(o[a_w : b_w], y[a_w : b_w]),  [a_w, b_w) the steps whose losses window w holds           (1)

    function: `(outputs, targets) -> loss`, a 0-d tensor, or `(loss, aux)`; a module or any callable. It is called once
        per window, on the outputs and targets of all steps with a loss, whose time axis stays in its place. If the
        chunk has a mask, the window's mask, (n, B) or (n,), time first, is passed as a third argument; where the mask
        is 0, outputs get no gradient.

    Returns a loss for `unroll`, `backward`, `evaluate`, `compare` and `plan`. It is exact under any budget: the
    window's outputs are kept, the gradient with respect to them is taken once, and each segment pulls back its part.
    `Update.loss` and `mean_loss` are the function's value; `backward` adds windows, and its `mean_loss` is their mean.
    `reduction` has no effect. `evaluate` takes `window=`, the steps of a window; `diagnose` and random or adaptive
    windows are refused, since a cut would change the objective: use `FullBPTT` or `TruncatedBPTT`.
    Raises TypeError for anything that can't be called like that, and for a function that doesn't return a 0-d tensor.
    Cost: under a budget one more forward of each step; memory for the outputs of a window.

    >>> import bptt, torch
    >>> ratio = bptt.per_window(lambda outputs, targets: (outputs - targets).square().sum() / targets.square().sum())
    >>> chunk = torch.ones(8, 2, 3), torch.ones(8, 2, 4)
    >>> update = bptt.backward(torch.nn.GRU(3, 4), ratio, chunk, memory=bptt.Checkpoints(slots=2, segment=3))
    >>> update.loss.dim(), update.forward_steps
    (0, 22)
    """
    if isinstance(function, type) and issubclass(function, nn.Module):
        raise TypeError(f"per_window({function.__name__}): this is a class; pass an instance of it.")
    _errors.check_callable(function, "per_window's function")
    if not _recurrence.takes(function, 2) and not _recurrence.takes(function, 3):
        name = _errors.named(function)
        raise TypeError(f"per_window: {name} can't be called as function(outputs, targets), or with a mask as third.")
    return PerWindow(function)


class WindowLoss:
    """The function of `per_window`, whose result is checked; it takes the place of a `StepLoss`."""

    by_window = True

    def __init__(self, loss: Callable[..., Any]) -> None:
        self.loss = loss
        self._takes_two, self._takes_mask = (_recurrence.takes(loss, count) for count in (2, 3))

    def __call__(self, outputs: Tree, targets: Tree, mask: Tensor | None) -> tuple[Tensor, Tree]:
        """(value, aux) of a window."""
        name = _errors.named(self.loss)
        if mask is not None and not self._takes_mask:
            raise TypeError(
                f"the chunk has a mask, which per_window({name}) hands to its function as a third argument, but that "
                f"takes two: write (outputs, targets, mask)."
            )
        if mask is None and not self._takes_two:
            raise TypeError(f"per_window({name}) asks for a mask, which the chunk doesn't have: pass Chunk(mask=...).")
        given = {"outputs": outputs, "targets": targets} | ({} if mask is None else {"mask": mask})
        try:
            result = self.loss(*given.values())
        except Exception as error:
            _recurrence.explain(error, f"the loss {name} fails", given)
        value, aux = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            got = f"shape {_tree.shape(value)} and {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"per_window({name}): the function must return a floating 0-d tensor, not {got}.")
        if aux is not None:
            _tree.check_tensors(aux, "aux")
        return value, _tree.detach(aux)

    def summed(self, windows: list[Window], time_dim: int) -> "WindowLoss":
        """The loss of a sequence as the sum of its windows' losses, without aux."""

        def function(outputs: Tree, targets: Tree, *mask: Tensor) -> Tensor:
            values = []
            for w in windows:
                own, wanted = (_tree.narrow(tree, time_dim, w.first, w.steps) for tree in (outputs, targets))
                values.append(self(own, wanted, mask[0][w.first : w.stop] if mask else None)[0])
            return torch.stack(values).sum()

        return WindowLoss(function)

    def weight(self, targets: Tree, mask: Tensor | None, steps: int, losses: Tensor | None = None) -> Any:
        """A window counts as one term."""
        return 1


def inner(loss: Any) -> Any:
    """The function of a loss by window, or any other loss itself: what holds parameters and buffers."""
    return loss.function if isinstance(loss, PerWindow) else loss


def check_value(value: Tensor, first: int, stop: int) -> None:
    """Raise unless a window's loss is finite; the first of an update's two synchronisations."""
    if not value.is_meta and not isfinite(value.item()):
        raise NonFiniteLossError(
            f"the loss of steps {first} to {stop - 1} is {value.item()}: no update was made from it.", first
        )
