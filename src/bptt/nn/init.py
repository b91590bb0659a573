"""Initialisers for recurrent weights, named as in `torch.nn.init`: each fills its tensor in place and returns it."""

import math

import torch
from torch import Tensor, nn


def orthogonal_(tensor: Tensor, gain: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a matrix with a random orthogonal one, times `gain`: it keeps the length of every vector.

        W = gain · Q,  Qᵀ Q = 1,  so that |W h| = gain · |h|                                (1)

    tensor: (n, m), floating. If n < m, the rows are orthonormal.
    gain: factor, a finite number. generator: the source of randomness; None is torch's default one.

    Returns `tensor`. Raises ValueError or TypeError for anything but a floating matrix.
    Cost: one QR decomposition, n m min(n, m) operations.

    >>> import bptt.nn, torch
    >>> W = bptt.nn.init.orthogonal_(torch.empty(3, 3, dtype=torch.float64))
    >>> torch.allclose(W.T @ W, torch.eye(3, dtype=torch.float64))
    True

    Source: Saxe, McClelland & Ganguli 2013, https://arxiv.org/abs/1312.6120; `torch.nn.init.orthogonal_`.
    """
    _matrix(tensor, "orthogonal_")
    _finite(gain, "orthogonal_", "gain")
    if tensor.dtype in (torch.float32, torch.float64):
        return nn.init.orthogonal_(tensor, gain, generator=generator)
    single = torch.empty_like(tensor, dtype=torch.float32)  # there is no QR decomposition in half precision
    with torch.no_grad():
        return tensor.copy_(nn.init.orthogonal_(single, gain, generator=generator))


def identity_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill a matrix with the identity, times `gain`: each unit starts by remembering itself (IRNN).

        W_ij = gain if i = j, else 0                                                      (1)

    tensor: (n, m), floating. gain: factor, a finite number; the source uses 1, or 0.01 if memory should be short.

    Returns `tensor`. Raises ValueError or TypeError for anything but a floating matrix. Cost: n m.

    >>> import bptt.nn, torch
    >>> bptt.nn.init.identity_(torch.empty(2, 2), gain=0.5)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])

    Source: Le, Jaitly & Hinton 2015, https://arxiv.org/abs/1504.00941; `torch.nn.init.eye_`.
    """
    _matrix(tensor, "identity_")
    _finite(gain, "identity_", "gain")
    with torch.no_grad():
        return nn.init.eye_(tensor).mul_(gain)


def spectral_radius_(tensor: Tensor, radius: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a square matrix with a random one whose largest eigenvalue has modulus `radius`.

        W = radius / ρ(G) · G,  G_ij ~ N(0, 1),  ρ(G) = max_i |λ_i(G)|                      (1)

    With the identity as activation ∂h_t/∂h_k = W^(t-k), which vanishes for radius < 1 and explodes for radius > 1 as
    radius^(t-k). The matrix isn't normal: its norm is larger than its radius, so that short products may grow first.

    tensor: (n, n), floating. radius: ρ(W), a finite number >= 0.
    generator: the source of randomness; None is torch's default one.

    Returns `tensor`. Raises ValueError or TypeError for anything but a square floating matrix, or a negative radius.
    Cost: one eigenvalue decomposition in float64 on the CPU, about 10 n³ operations.

    >>> import bptt.nn, torch
    >>> W = bptt.nn.init.spectral_radius_(torch.empty(5, 5, dtype=torch.float64), radius=0.9)
    >>> round(torch.linalg.eigvals(W).abs().max().item(), 12)
    0.9

    Source: Jaeger 2001, "The echo state approach to analysing and training recurrent neural networks", GMD report 148;
    there the entries are sparse.
    """
    _matrix(tensor, "spectral_radius_")
    if tensor.shape[0] != tensor.shape[1]:
        raise ValueError(f"spectral_radius_: a matrix {_shape(tensor)} has no eigenvalues: pass a square one, (n, n).")
    if _finite(radius, "spectral_radius_", "radius") < 0:
        raise ValueError(f"spectral_radius_(radius={radius!r}): a radius is a number of at least 0.")
    with torch.no_grad():
        tensor.normal_(generator=generator)
        drawn = tensor.to("cpu", torch.float64)
        return tensor.copy_(drawn * (radius / torch.linalg.eigvals(drawn).abs().max()))


def glorot_(tensor: Tensor, gain: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a matrix with uniform numbers whose variance suits both directions: `torch.nn.init.xavier_uniform_`.

        U_ij ~ uniform(-r, r),  r = gain · sqrt(6 / (n + m))                              (1)

    tensor: (n, m), floating. gain: factor, a finite number.
    generator: the source of randomness; None is torch's default one.

    Returns `tensor`. Raises ValueError or TypeError for anything but a floating matrix. Cost: n m.

    >>> import bptt.nn, torch
    >>> bool(bptt.nn.init.glorot_(torch.empty(4, 2)).abs().max() <= 1)
    True

    Source: Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks",
    equation 16.
    """
    _matrix(tensor, "glorot_")
    _finite(gain, "glorot_", "gain")
    return nn.init.xavier_uniform_(tensor, gain, generator=generator)


def _matrix(tensor: Tensor, name: str) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} fills a tensor of floating numbers in place, not {kind}.")
    if tensor.dim() != 2 or tensor.numel() == 0:
        raise ValueError(f"{name}: a tensor of shape {_shape(tensor)} isn't a matrix: pass two axes, not empty.")


def _finite(value: float, name: str, keyword: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}({keyword}={value!r}): {keyword} must be a finite number.")
    return value


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
