"""Whether a loss is a sum over steps: whether the losses of some steps equal those of their two halves."""

import torch
from torch import Tensor

from bptt import _errors, _tree
from bptt._guard.kept import Kept
from bptt._guard.likeness import CLOSE, alike, distance, nudged, rounding
from bptt._loss import StepLoss
from bptt._segment import Problem
from bptt._snapshot import Noise, foreign_noise_restored, noise_restored
from bptt._tree import Tree


def by_step(problem: Problem, outputs: Tree, targets: Tree, n: int) -> None:
    """Raise ValueError if the losses of n >= 2 steps aren't those of two parts of them.

    A loss that draws numbers can't be checked, and one that fails on a part will say so itself. Batch norm is run in
    evaluation mode here: that it depends on where a call begins is known.
    """
    loss, dim = problem.loss, problem.time_dim
    assert isinstance(loss, StepLoss)
    half = (n + 1) // 2
    tensors = [*_tree.leaves(outputs), *_tree.leaves(targets)]
    kept = Kept(loss.loss)

    def losses(a: int, b: int, of: Tree = outputs) -> Tensor:
        kept.lend(lambda holder, key: holder.kind != "generator")
        mine, theirs = (_tree.map_leaves(torch.clone, _tree.narrow(t, dim, a, b - a)) for t in (of, targets))
        return loss._call(mine, theirs, b - a)[0]

    with noise_restored(tensors), foreign_noise_restored(), torch.no_grad(), kept.normalised_as_in_evaluation():
        try:
            noise = Noise.now(tensors)
            whole = losses(0, n)
            drawn = not noise.equals(Noise.now(tensors))
            if drawn or not alike(whole, losses(0, n)):
                return
            parts = torch.cat([losses(0, half), losses(half, n)])
            eps = rounding([*tensors, whole], loss.loss)
            if alike(whole, parts, max(CLOSE, 8 * eps)):
                return
            moved = [losses(0, n, _tree.map_leaves(lambda leaf, s=s: nudged(leaf, s * eps), outputs)) for s in (1, -1)]
            if parts.shape == whole.shape and distance(whole, parts) <= 16 * max(distance(whole, m) for m in moved):
                return  # rounding, which a loss near zero magnifies
        except Exception:
            return
        finally:
            kept.restore()
            torch.clear_autocast_cache()
    raise ValueError(
        f"the loss {_errors.named(loss.loss)} mixes time steps: {half} of {n} steps have different losses alone than "
        f"among all {n}, but memory= calls it for parts of a window. Let the loss of a step depend on that step alone, "
        f"pass a loss of the whole window by bptt.per_window, or give memory=None; see docs/pitfalls.md, "
        f'"A loss that isn\'t a sum over steps".'
    )
