"""The gradients: term by term, as a double sum over the terms, and by the recursion that shares their work."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.equations.steps import Trace, jacobian


class Gradient(NamedTuple):
    """One array per parameter, in its shape, or with leading axes for the parts; None if there is no bias."""

    U: Tensor
    W: Tensor
    V: Tensor
    b: Tensor | None = None
    c: Tensor | None = None


def state_cotangents(trace: Trace) -> Tensor:
    """How each loss depends on each state; the sums are made of this.

        ∂l_t/∂h_k = (∂h_t/∂h_k)ᵀ Vᵀ e_t,  by  ∂l_t/∂h_{k-1} = Wᵀ D_k ∂l_t/∂h_k,  k = t .. 1    (1)

    Returns (T, T, H), entry [t, k], zero for k > t: no loss depends on a later state.
    Cost: T(T-1)/2 products of Wᵀ and a vector; memory for T² states.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> state_cotangents(forward(network, torch.ones(2, 1), torch.zeros(2, 1))).squeeze(-1)
    tensor([[1.0000, 0.0000],
            [0.7500, 1.5000]], dtype=torch.float64)
    """
    c = trace.h.new_zeros(trace.steps, *trace.h.shape)
    for t in range(trace.steps):
        c[t, t] = trace.network.V.T @ trace.e[t]
        for k in range(t, 0, -1):
            c[t, k - 1] = trace.network.W.T @ (trace.slopes[k] * c[t, k])  # (1)
    return c


def gradient_by_double_sum(trace: Trace, weights: Tensor | None = None) -> Gradient:
    """The gradient by the explicit sums over the losses t and the steps k <= t, each term with its weight.

        dL/dV = Σ_t ω_tt e_t h_tᵀ                          dL/dc = Σ_t ω_tt e_t            (1)
        dL/dW = Σ_t Σ_{k<=t} ω_tk δ_tk h_{k-1}ᵀ            dL/db = Σ_t Σ_{k<=t} ω_tk δ_tk  (2)
        dL/dU = Σ_t Σ_{k<=t} ω_tk δ_tk x_kᵀ,               δ_tk = D_k (∂h_t/∂h_k)ᵀ Vᵀ e_t  (3)

    weights: ω, (T, T), as `truncated_weights` and its like give them; None is 1 everywhere, the full gradient.

    Returns a `Gradient` of L = Σ_t l_t. Raises ValueError for weights of another shape.
    Cost: T(T-1)/2 products of Wᵀ and a vector, T(T+1)/2 outer products, or less where a row of ω starts with zeros;
    no memory beyond the trace. See `costs`.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> gradient_by_double_sum(forward(network, torch.ones(2, 1), torch.zeros(2, 1))).W
    tensor([[1.5000]], dtype=torch.float64)

    Source: Pascanu, Mikolov & Bengio 2013, https://arxiv.org/abs/1211.5063, with weights added.
    """
    weights = _checked(trace, weights)
    U, W, V, b, c = _zeros(trace)
    for t in range(trace.steps):
        e = trace.e[t]
        V += weights[t, t] * torch.outer(e, trace.h[t])  # (1)
        c += weights[t, t] * e
        cotangent = trace.network.V.T @ e  # ∂l_t/∂h_t
        first = next((k for k in range(t) if weights[t, k] != 0), t)  # terms below could overflow needlessly
        for k in range(t, first - 1, -1):
            delta = trace.slopes[k] * cotangent
            W += weights[t, k] * torch.outer(delta, trace.h_before[k])  # (2)
            b += weights[t, k] * delta
            U += weights[t, k] * torch.outer(delta, trace.x[k])  # (3)
            if k > first:
                cotangent = trace.network.W.T @ delta  # ∂l_t/∂h_{k-1}
    return _gradient(trace, U, W, V, b, c)


def gradient_by_recursion(trace: Trace, boundaries: Tensor | None = None) -> Gradient:
    """The gradient by one walk back in time, which computes only once what terms of the double sum have in common.

        c_t = Vᵀ e_t + w_{t+1} Wᵀ D_{t+1} c_{t+1},  c_{T-1} = Vᵀ e_{T-1}                   (1)
        dL/dW = Σ_t D_t c_t h_{t-1}ᵀ,  dL/dU = Σ_t D_t c_t x_tᵀ,  dL/db = Σ_t D_t c_t       (2)
        dL/dV = Σ_t e_t h_tᵀ,  dL/dc = Σ_t e_t                                            (3)

    boundaries: w, (T,): w_t multiplies what step t sends back to step t - 1; w_0 isn't used. 0 is a cut, 1 changes
        nothing; None is 1 everywhere, which gives the full gradient. See `subsequence_boundaries`,
        `ARTBPPattern.boundaries`.

    Returns a `Gradient`, equal to the double sum with `pair_weights(boundaries)`. Raises ValueError for boundaries of
    another shape. Cost: T-1 products of Wᵀ and a vector, T outer products; memory for one vector beyond the trace.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> gradient_by_recursion(forward(network, torch.ones(2, 1), torch.zeros(2, 1))).W
    tensor([[1.5000]], dtype=torch.float64)

    Source: Werbos 1990; with w, Tallec & Ollivier 2017, proposition 1, https://arxiv.org/abs/1705.08209
    """
    if boundaries is None:
        boundaries = trace.h.new_ones(trace.steps)
    if boundaries.shape != (trace.steps,):
        raise ValueError(f"boundaries have shape {tuple(boundaries.shape)}, but need ({trace.steps},), one per step.")
    U, W, V, b, c = _zeros(trace)
    from_later = trace.h.new_zeros(trace.h.shape[1])  # w_{t+1} Wᵀ D_{t+1} c_{t+1}
    for t in reversed(range(trace.steps)):
        e = trace.e[t]
        cotangent = trace.network.V.T @ e + from_later  # (1)
        delta = trace.slopes[t] * cotangent
        W += torch.outer(delta, trace.h_before[t])  # (2)
        U += torch.outer(delta, trace.x[t])
        b += delta
        V += torch.outer(e, trace.h[t])  # (3)
        c += e
        if t > 0:
            from_later = boundaries[t] * (trace.network.W.T @ delta)
    return _gradient(trace, U, W, V, b, c)


def pair_term(trace: Trace, t: int, k: int) -> Gradient:
    """The gradient of the loss at step t with respect to the parameters as used at step k, written out.

        dL/dW [t, k] = (D_k (∂h_t/∂h_k)ᵀ Vᵀ e_t) h_{k-1}ᵀ,  dL/dU [t, k] the same with x_kᵀ, dL/db without   (1)
        dL/dV [t, t] = e_t h_tᵀ,  dL/dc [t, t] = e_t,  and zero for k < t: no later loss sees o_k            (2)

    t: step of the loss, 0 .. T-1. k: step of the parameters, 0 .. t.
    Returns a `Gradient` in the parameters' shapes. Raises ValueError for other t or k.
    Cost: t - k products of H x H matrices.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> pair_term(forward(network, torch.ones(3, 1), torch.zeros(3, 1)), t=2, k=1).W
    tensor([[0.8750]], dtype=torch.float64)
    """
    if k < 0:
        raise ValueError(f"k={k}: the parameters are used at steps 0 .. T-1, so k is 0 .. t.")
    delta = trace.slopes[k] * (jacobian(trace, t, k).T @ trace.network.V.T @ trace.e[t])
    own = float(t == k)
    return _gradient(
        trace,
        U=torch.outer(delta, trace.x[k]),
        W=torch.outer(delta, trace.h_before[k]),
        V=own * torch.outer(trace.e[t], trace.h[t]),
        b=delta,
        c=own * trace.e[t],
    )


def pair_terms(trace: Trace) -> Gradient:
    """Every `pair_term` at once: the gradient before it is summed.

        dL/dθ = Σ_t Σ_k terms[t, k]                                                       (1)

    Returns a `Gradient` of arrays (T, T, ...), entry [t, k], zero for k > t.
    Cost: T(T-1)/2 products of Wᵀ and a vector; memory for T² gradients: meant for short sequences and small networks.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> pair_terms(forward(network, torch.ones(2, 1), torch.zeros(2, 1))).U.squeeze()
    tensor([[1.0000, 0.0000],
            [0.7500, 1.5000]], dtype=torch.float64)
    """
    delta = trace.slopes * state_cotangents(trace)
    own = torch.eye(trace.steps, dtype=torch.float64, device=delta.device)
    return _gradient(
        trace,
        U=torch.einsum("tkh,ki->tkhi", delta, trace.x),
        W=torch.einsum("tkh,kj->tkhj", delta, trace.h_before),
        V=torch.einsum("tk,to,th->tkoh", own, trace.e, trace.h),
        b=delta,
        c=torch.einsum("tk,to->tko", own, trace.e),
    )


def lag_term(trace: Trace, lag: int) -> Gradient:
    """The gradient of all losses with respect to the parameters as used `lag` steps before each.

        dL/dθ [lag] = Σ_{t >= lag} terms[t, t - lag]                                      (1)

    lag: t - k in steps, 0 .. T-1. Returns a `Gradient` in the parameters' shapes. Raises ValueError for another lag.
    Cost: that of `pair_terms`.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> lag_term(forward(network, torch.ones(3, 1), torch.zeros(3, 1)), lag=1).W
    tensor([[0.8750]], dtype=torch.float64)
    """
    if not 0 <= lag < trace.steps:
        raise ValueError(f"lag={lag} is beyond a sequence of T={trace.steps} steps: lags are 0 .. {trace.steps - 1}.")
    return _map(lambda terms: terms[lag], lag_terms(trace))


def lag_terms(trace: Trace) -> Gradient:
    """Every `lag_term` at once.

        dL/dθ = Σ_lag terms[lag]                                                          (1)

    Returns a `Gradient` of arrays (T, ...), entry [lag]; those of V and c have lag 0 alone.
    Cost: that of `pair_terms`. The sum of the first τ entries is the gradient truncated after τ steps.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> lag_terms(forward(network, torch.ones(3, 1), torch.zeros(3, 1))).W.flatten()
    tensor([4.1250, 0.8750, 0.0000], dtype=torch.float64)
    """

    def by_lag(terms: Tensor) -> Tensor:
        return torch.stack([terms.diagonal(-lag).sum(-1) for lag in range(trace.steps)])

    return _map(by_lag, pair_terms(trace))


def _checked(trace: Trace, weights: Tensor | None) -> Tensor:
    if weights is None:
        return trace.h.new_ones(trace.steps, trace.steps)
    if weights.shape != (trace.steps, trace.steps):
        raise ValueError(f"weights have shape {tuple(weights.shape)}, and must be (T, T), here T = {trace.steps}.")
    return weights


def _zeros(trace: Trace) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    U, W, V = trace.network.U, trace.network.W, trace.network.V
    return torch.zeros_like(U), torch.zeros_like(W), torch.zeros_like(V), W.new_zeros(len(W)), V.new_zeros(len(V))


def _gradient(trace: Trace, U: Tensor, W: Tensor, V: Tensor, b: Tensor, c: Tensor) -> Gradient:
    network = trace.network
    return Gradient(U, W, V, None if network.b is None else b, None if network.c is None else c)


def _map(function: Callable[[Tensor], Tensor], terms: Gradient) -> Gradient:
    b, c = (None if bias is None else function(bias) for bias in (terms.b, terms.c))
    return Gradient(function(terms.U), function(terms.W), function(terms.V), b, c)
