"""The network, its activations and its losses, each with its derivative."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Activation(NamedTuple):
    """f and f', both as functions of a."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


class Loss(NamedTuple):
    """l(o, y) and e = ∂l/∂o, step by step: (..., O) to (...), and to (..., O)."""

    value: Callable[[Tensor, Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]


def squared_error(o: Tensor, y: Tensor) -> Tensor:
    """Half the squared distance, summed over the components.

        l_t = ½ Σ_i (o_ti - y_ti)²,  so that e_t = ∂l_t/∂o_t = o_t - y_t                   (1)

    o, y: (..., O), any floating dtype. Returns (...), one loss per step, so it can be passed to `bptt.backward`.

    >>> import torch
    >>> squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([2.5000])

    Deviation from `torch.nn.MSELoss`: a factor ½, and a sum over components instead of their mean.
    """
    return 0.5 * (o - y).square().sum(-1)


def softmax_cross_entropy(o: Tensor, y: Tensor) -> Tensor:
    """The surprise at class y_t under p_t = softmax(o_t), in nats.

        l_t = -log p_t[y_t] = log Σ_i exp(o_ti) - o_t[y_t],  e_t = p_t - onehot(y_t)       (1)

    o: (..., O), floating. y: (...), int64 in 0 .. O-1. Returns (...), so it can be passed to `bptt.backward`.

    >>> import torch
    >>> softmax_cross_entropy(torch.zeros(1, 4), torch.tensor([3])).exp()
    tensor([4.])
    """
    return o.logsumexp(-1) - o.gather(-1, y.unsqueeze(-1)).squeeze(-1)


def _softmax_error(o: Tensor, y: Tensor) -> Tensor:
    return o.softmax(-1) - torch.nn.functional.one_hot(y, o.shape[-1]).to(o.dtype)


ACTIVATIONS = {
    "identity": Activation(lambda a: a, torch.ones_like),
    "tanh": Activation(torch.tanh, lambda a: 1 - torch.tanh(a) ** 2),
    "relu": Activation(torch.relu, lambda a: (a > 0).to(a.dtype)),
    "sigmoid": Activation(torch.sigmoid, lambda a: torch.sigmoid(a) * (1 - torch.sigmoid(a))),
}
"""f and f' by name; relu has f'(0) = 0, as autograd has it."""

LOSSES = {
    "squared_error": Loss(squared_error, lambda o, y: o - y),
    "softmax_cross_entropy": Loss(softmax_cross_entropy, _softmax_error),
}
"""l and ∂l/∂o by name."""


@dataclass(frozen=True, eq=False)
class Network:
    """The textbook's recurrent network: three matrices, an activation and a loss.

        a_t = U x_t + W h_{t-1} + b,  h_t = f(a_t),  o_t = V h_t + c,  l_t = l(o_t, y_t)   (1)
        L = Σ_t l_t,  t = 0 .. T-1                                                        (2)

    U: (H, I). W: (H, H). V: (O, H). b: (H,) or None. c: (O,) or None: floating tensors, copied without their graph to
        float64.
    nonlinearity: f: "identity", "tanh", "relu" or "sigmoid". loss: l: "squared_error" or "softmax_cross_entropy".

    Raises ValueError for shapes that don't fit, naming them all, and for an unknown nonlinearity or loss; TypeError
    for anything but a floating tensor.

    >>> import torch
    >>> Network(U=torch.ones(2, 1), W=0.5 * torch.eye(2), V=torch.ones(1, 2)).W.dtype
    torch.float64

    Source: Elman 1990; the derivation's case is f = identity without b and c. Deviation: the loss is summed over the
    steps, as in `reduction="sum"`; divide a gradient by T for L = (1/T) Σ_t l_t.
    """

    U: Tensor
    W: Tensor
    V: Tensor
    b: Tensor | None = None
    c: Tensor | None = None
    nonlinearity: str = "identity"
    loss: str = "squared_error"

    def __post_init__(self) -> None:
        for name in ("U", "W", "V", "b", "c"):
            value = getattr(self, name)
            if value is not None or name in ("U", "W", "V"):
                object.__setattr__(self, name, double(value, name))
        H, O = self.W.shape[0] if self.W.dim() else 0, self.V.shape[0] if self.V.dim() else 0  # noqa: E741
        shapes_fit = self.U.dim() == 2 and self.U.shape[0] == H and self.W.shape == (H, H) and self.V.shape == (O, H)
        if not shapes_fit or 0 in (*self.U.shape, H, O):
            raise ValueError(
                f"Network: U {tuple(self.U.shape)}, W {tuple(self.W.shape)} and V {tuple(self.V.shape)} don't fit "
                f"together: they must be (hidden, input), (hidden, hidden) and (output, hidden)."
            )
        for name, bias, size in (("b", self.b, H), ("c", self.c, O)):
            if bias is not None and bias.shape != (size,):
                raise ValueError(
                    f"Network: {name} has shape {tuple(bias.shape)}, and must be ({size},) for this network."
                )
        known(self.nonlinearity, ACTIVATIONS, "nonlinearity")
        known(self.loss, LOSSES, "loss")

    @classmethod
    def of(cls, model: Any, loss: str = "squared_error") -> "Network":
        """The network that a `bptt.nn.SimpleRNN` currently is: a copy of its U, W, V, b, c, and its nonlinearity.

        >>> import bptt.nn
        >>> Network.of(bptt.nn.SimpleRNN(2, 3, 1, "tanh")).nonlinearity
        'tanh'
        """
        fields = ("U", "W", "V", "b", "c", "nonlinearity")
        missing = [name for name in fields if not hasattr(model, name)]
        if missing:
            raise TypeError(
                f"Network.of takes a bptt.nn.SimpleRNN; {type(model).__name__} has no attribute {missing[0]!r}."
            )
        return cls(*(getattr(model, name) for name in fields), loss=loss)


def double(value: Any, name: str) -> Tensor:
    """A copy in float64, without a graph and independent of later changes of the original."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of floating numbers, not {kind}.")
    return value.detach().to(torch.float64, copy=True)


def known(value: Any, table: dict[str, Any], name: str) -> None:
    """Raise unless it is a key of `table`."""
    if value not in table:
        names = ", ".join(f'"{key}"' for key in table)
        raise ValueError(f"{name}={value!r} is unknown: use one of {names}.")
