"""Constraints on recurrent weights, as parametrisations for torch.nn.utils.parametrize."""

import torch
from torch import Tensor, nn


class Dale(nn.Module):
    """Dale's law as a parametrisation of a matrix W: all weights that lead away from a unit have its sign.

        W = max(V, 0) D,  D = diag(signs)                                                 (1)

    signs: (n,), 1 for excitatory and -1 for inhibitory units, as many as W has columns.

    Register it with `torch.nn.utils.parametrize.register_parametrization(layer, "weight_hh", Dale(signs))`: V is then
    the parameter, and starts as |W|, so that the size of each weight stays. Where V <= 0 its gradient is 0, which is
    exact: such a weight is 0 and stays so until something else moves it.
    Raises ValueError for signs other than 1 and -1. Cost: one multiplication for each weight.

    >>> import bptt.nn, torch
    >>> from torch.nn.utils import parametrize
    >>> layer = bptt.nn.CTRNN(3, 5, alpha=0.2, nonlinearity="relu", form="voltage")
    >>> dale = bptt.nn.Dale(torch.tensor([1, 1, 1, 1, -1]))
    >>> _ = parametrize.register_parametrization(layer, "weight_hh", dale)
    >>> bool((layer.weight_hh[:, :4] >= 0).all() and (layer.weight_hh[:, 4] <= 0).all())
    True

    Source: Song, Yang & Wang 2016, PLoS Computational Biology 12(2), e1004792, who rectify V as well.
    """

    signs: Tensor

    def __init__(self, signs: Tensor) -> None:
        super().__init__()
        if not isinstance(signs, Tensor) or signs.dim() != 1 or not bool((signs.abs() == 1).all()):
            got = tuple(signs.shape) if isinstance(signs, Tensor) else type(signs).__name__
            raise ValueError(
                f"Dale: signs are a tensor (n,) of 1 and -1, one for each unit, not {got} or other numbers."
            )
        self.register_buffer("signs", signs.detach().clone())

    def forward(self, V: Tensor) -> Tensor:
        """Equation (1)."""
        return torch.relu(V) * self.signs.to(V.dtype)

    def right_inverse(self, W: Tensor) -> Tensor:
        """The V to start from."""
        if W.dim() != 2 or W.shape[1] != len(self.signs):
            raise ValueError(f"Dale: {len(self.signs)} signs for a matrix {tuple(W.shape)}: one for each column.")
        return W.abs()


class Masked(nn.Module):
    """Connectivity as a parametrisation of a matrix W: weights that don't exist stay 0.

        W = M ∘ V                                                                         (1)

    mask: M, of the shape of W: booleans or 0 and 1; other numbers scale their weight.

    Register it like `Dale`, and after it if both apply: V is the parameter, whose gradient is 0 where M is 0.
    Raises ValueError for a mask that isn't a finite tensor, and at registration for one whose shape isn't W's.
    Cost: one multiplication for each weight.

    >>> import bptt.nn, torch
    >>> from torch.nn.utils import parametrize
    >>> layer = bptt.nn.CTRNN(3, 5, alpha=0.2)
    >>> _ = parametrize.register_parametrization(layer, "weight_hh", bptt.nn.Masked(1 - torch.eye(5)))
    >>> bool((layer.weight_hh.diagonal() == 0).all())
    True

    Source: Song, Yang & Wang 2016, PLoS Computational Biology 12(2), e1004792.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if not isinstance(mask, Tensor) or not bool(mask.isfinite().all()):
            got = "one with NaN or infinity" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"Masked: the mask is a finite tensor of the shape of the weights, not {got}.")
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, V: Tensor) -> Tensor:
        """Equation (1)."""
        return V * self.mask.to(V.dtype)

    def right_inverse(self, W: Tensor) -> Tensor:
        """The V to start from: W itself."""
        if W.shape != self.mask.shape:
            raise ValueError(f"Masked: a mask {tuple(self.mask.shape)} for weights {tuple(W.shape)}: make them equal.")
        return W
