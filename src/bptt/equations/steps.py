"""The forward pass with every symbol kept as an array, and the Jacobians between states."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bptt.equations.network import ACTIVATIONS, LOSSES, Network, double


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass, made by `forward`: every symbol is an array whose row t belongs to step t = 0 .. T-1.

    network, x (T, I), y (T, O) or (T,): what was given.
    a (T, H), h (T, H), o (T, O), l (T,): a_t, h_t, o_t, l_t.
    h_before (T, H): row t is h_{t-1}, so that row 0 is the state before the first step.
    """

    network: Network
    x: Tensor
    y: Tensor
    h_before: Tensor
    a: Tensor
    h: Tensor
    o: Tensor
    l: Tensor  # noqa: E741

    @property
    def steps(self) -> int:
        """T."""
        return len(self.x)

    @property
    def loss(self) -> Tensor:
        """L = Σ_t l_t, 0-d."""
        return self.l.sum()

    @cached_property
    def slopes(self) -> Tensor:
        """f'(a_t), (T, H): the diagonal of D_t."""
        return ACTIVATIONS[self.network.nonlinearity].slope(self.a)

    @cached_property
    def e(self) -> Tensor:
        """e_t = ∂l_t/∂o_t, (T, O): o_t - y_t, or softmax(o_t) - onehot(y_t)."""
        return LOSSES[self.network.loss].error(self.o, self.y)


def forward(network: Network, x: Tensor, y: Tensor, h0: Tensor | None = None) -> Trace:
    """Run the network over one sequence and keep everything.

        a_t = U x_t + W h_{t-1} + b                                                       (1)
        h_t = f(a_t)                                                                      (2)
        o_t = V h_t + c                                                                   (3)
        l_t = l(o_t, y_t)                                                                 (4)

    network: a `Network`. x: (T, I), floating. y: (T, O) floating for the squared error, (T,) int64 classes for the
    cross-entropy. h0: (H,), the state before the first step; None is zeros.

    Returns a `Trace`, float64. Raises ValueError for T = 0, shapes that don't fit, and classes outside 0 .. O-1;
    TypeError for wrong dtypes. Cost: one product with each matrix per step.

    >>> import torch
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> trace = forward(network, x=torch.ones(3, 1), y=torch.zeros(3, 1))
    >>> trace.h.flatten().tolist(), trace.h_before.flatten().tolist()
    ([1.0, 1.5, 1.75], [0.0, 1.0, 1.5])

    Source: Rumelhart, Hinton & Williams 1986, "Learning internal representations by error propagation".
    """
    U, W, V = network.U, network.W, network.V
    x = double(x, "x").to(U.device)
    if x.dim() != 2 or x.shape[1] != U.shape[1] or len(x) == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, and must be (T, {U.shape[1]}), one sequence of T >= 1 steps.")
    y = _targets(network, y, len(x)).to(U.device)
    h = torch.zeros_like(W[0]) if h0 is None else double(h0, "h0").to(U.device)
    if h.shape != W[0].shape:
        raise ValueError(f"h0 has shape {tuple(h.shape)}, and must be ({len(W)},), the state of one sequence.")
    b = 0 if network.b is None else network.b
    c = 0 if network.c is None else network.c
    f, loss = ACTIVATIONS[network.nonlinearity].value, LOSSES[network.loss].value

    rows: list[tuple[Tensor, ...]] = []
    for x_t, y_t in zip(x, y, strict=True):
        h_before = h
        a = U @ x_t + W @ h_before + b  # (1)
        h = f(a)  # (2)
        o = V @ h + c  # (3)
        rows.append((h_before, a, h, o, loss(o, y_t)))  # (4)
    return Trace(network, x, y, *(torch.stack(column) for column in zip(*rows, strict=True)))


def step_jacobian(trace: Trace, t: int) -> Tensor:
    """How the state of one step depends on the state before it.

        ∂h_t/∂h_{t-1} = D_t W,  D_t = diag f'(a_t)                                         (1)

    t: step, 0 .. T-1. Returns (H, H), entry (i, j) being ∂h_ti/∂h_{t-1}j. Raises ValueError for another t.
    Cost: H² multiplications.

    >>> import torch
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> step_jacobian(forward(network, torch.ones(3, 1), torch.zeros(3, 1)), t=2)
    tensor([[0.5000]], dtype=torch.float64)
    """
    _step(trace, t)
    return trace.slopes[t].unsqueeze(1) * trace.network.W


def jacobian(trace: Trace, t: int, k: int) -> Tensor:
    """The Jacobian chain: how the state at step t depends on the state at an earlier step k.

        ∂h_t/∂h_k = D_t W · D_{t-1} W · ... · D_{k+1} W,  ∂h_t/∂h_t = 1                    (1)

    With the identity as activation it is W^(t-k): it vanishes or explodes with the spectral radius of W.

    t: step, 0 .. T-1. k: step, -1 .. t; h_{-1} is the state before the first step.
    Returns (H, H), entry (i, j) being ∂h_ti/∂h_kj. Raises ValueError for k > t or a lag beyond the sequence.
    Cost: t - k products of H x H matrices.

    >>> import torch
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> jacobian(forward(network, torch.ones(5, 1), torch.zeros(5, 1)), t=4, k=1)
    tensor([[0.1250]], dtype=torch.float64)

    Source: Pascanu, Mikolov & Bengio 2013, https://arxiv.org/abs/1211.5063
    """
    _step(trace, t)
    if not -1 <= k <= t:
        raise ValueError(f"k={k} with t={t}: h_t depends on the states k = -1 .. t, so the lag t - k is 0 .. {t + 1}.")
    chain = torch.eye(len(trace.network.W), dtype=torch.float64, device=trace.h.device)
    for j in range(t, k, -1):
        chain = chain @ step_jacobian(trace, j)
    return chain


def _step(trace: Trace, t: int) -> None:
    if not 0 <= t < trace.steps:
        raise ValueError(f"t={t} isn't a step of a sequence of T={trace.steps}: steps are 0 .. {trace.steps - 1}.")


def _targets(network: Network, y: Tensor, steps: int) -> Tensor:
    outputs = len(network.V)
    if network.loss == "squared_error":
        y = double(y, "y")
        if y.shape != (steps, outputs):
            raise ValueError(f"y has shape {tuple(y.shape)}, and must be ({steps}, {outputs}) for these x and V.")
        return y
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y must be a tensor of classes, int64, for loss={network.loss!r}, not {kind}.")
    if y.shape != (steps,):
        raise ValueError(f"y has shape {tuple(y.shape)}, and must be ({steps},), one class per step of x.")
    if not bool(((y >= 0) & (y < outputs)).all()):
        raise ValueError(f"y has classes {int(y.min())} .. {int(y.max())}, and V (outputs) allows 0 .. {outputs - 1}.")
    return y.clone()
