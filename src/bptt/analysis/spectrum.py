"""Lyapunov exponents by QR steps: the rates at which a product of Jacobians stretches its directions."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _errors
from bptt._tree import shape


class Spectrum:
    """Lyapunov exponents from QR steps: Q R = A Q, the mean of log |R_ii|, and resets that begin anew."""

    def __init__(self, rows: int, size: int, count: int, skip: int, device: Any = None) -> None:
        generator = torch.Generator().manual_seed(0)  # never the global one; a generic start meets every direction
        start = torch.randn(size, count, generator=generator, dtype=torch.float64)
        self.start = torch.linalg.qr(start).Q.to(device).expand(rows, size, count).contiguous()
        self.q, self.skip, self.seen = self.start, skip, 0
        self.sums = self.start.new_zeros(rows, count)
        self.steps = self.start.new_zeros(rows, 1)

    def add(self, pulled: Tensor, reset: Tensor | None = None) -> None:
        """One step: pulled = A Q, (rows, size, count). reset (rows,): rows that no product crosses; they start anew."""
        self.q, r = torch.linalg.qr(pulled)
        logs = r.diagonal(dim1=1, dim2=2).abs().log()
        counts: Any = 1.0
        if reset is not None:
            reset = reset if reset.numel() in (1, len(logs)) else reset.all()  # rows that aren't told apart
            at = reset.to(logs.device).reshape(-1, 1).expand(len(logs), 1)
            logs, counts = torch.where(at, torch.zeros_like(logs), logs), (~at).to(logs.dtype)
            self.q = torch.where(at[:, :, None], self.start, self.q)
        if self.seen >= self.skip:
            self.sums = self.sums + logs
            self.steps = self.steps + counts
        self.seen += 1

    def exponents(self) -> Tensor:
        """(rows, count), the largest first; NaN for a row that every counted step resets."""
        return (self.sums / self.steps).sort(1, descending=True).values.cpu()

    def growth(self) -> Tensor:
        """(rows,): the top exponent; where the second is no further away than a complex pair's may be, their mean."""
        e = self.exponents()
        if e.shape[1] < 2:
            return e[:, 0]
        near = e[:, 0] - e[:, 1] < (10 / self.steps[:, 0].cpu()).clamp(max=0.02)
        return torch.where(near, (e[:, 0] + e[:, 1]) / 2, e[:, 0])


def lyapunov(jacobians: Iterable[Tensor], *, exponents: int | None = None, discard: int = 0) -> Tensor:
    """The Lyapunov spectrum of a product of matrices, by QR steps, so that nothing under- or overflows.

        Q_t R_t = J_t Q_{t-1},    λ_i = mean over t of log |R_t,ii|                       (1)

    jacobians: iterable of floating tensors (n, n) or (rows, n, n), the first factor first; `diagnose` runs the same
        steps on the transposed factors, last first, of the leaves of the state that some loss depends on. Here every
        direction counts.
    exponents: how many, the largest first; None is all n.
    discard: how many of the first steps are left out of the mean, while Q turns into its directions.

    Returns (exponents,) or (rows, exponents), float64, in nats per step, sorted; the members of a complex pair differ
    by O(1/steps), their mean doesn't. -inf where a factor is singular.
    Raises ValueError for matrices that aren't square, or no more of them than `discard`.
    Cost: n² · exponents a step, one matrix at a time in memory.

    >>> import bptt, torch
    >>> W = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    >>> bptt.lyapunov([W] * 60, discard=30)  # log 2 and log 0.5
    tensor([ 0.6931, -0.6931], dtype=torch.float64)

    Source: Benettin, Galgani, Giorgilli & Strelcyn 1980, "Lyapunov characteristic exponents for smooth dynamical
    systems and for Hamiltonian systems; a method for computing all of them", Meccanica 15; Engelken, Wolf & Abbott
    2023, "Lyapunov spectra of chaotic recurrent neural networks", https://arxiv.org/abs/2006.02427
    """
    if exponents is not None:
        _errors.check_count(exponents, "exponents")
    if isinstance(discard, bool) or not isinstance(discard, int) or discard < 0:
        raise ValueError(f"discard={discard!r} must be a whole number of steps, 0 or more.")
    found: Spectrum | None = None
    size, alone = torch.Size(), False
    for factor in jacobians:
        if found is None:
            if factor.dim() not in (2, 3) or factor.shape[-1] != factor.shape[-2] or not factor.is_floating_point():
                raise ValueError(
                    f"jacobians: a factor of shape {shape(factor)} and {factor.dtype}; pass real square matrices "
                    f"(n, n) or (rows, n, n)."
                )
            size, alone = factor.shape, factor.dim() == 2
            n = size[-1]
            if exponents is not None and exponents > n:
                raise ValueError(f"exponents={exponents} of matrices {n} by {n}: there are {n}.")
            found = Spectrum(1 if alone else size[0], n, exponents or n, discard, factor.device)
        if factor.shape != size:
            raise ValueError(f"jacobians: a factor of shape {shape(factor)} after one of {tuple(size)}.")
        found.add(factor.to(torch.float64) @ found.q)
    if found is None or found.seen <= discard:
        raise ValueError(
            f"jacobians gave {found.seen if found else 0} matrices and discard={discard} leaves none: pass more."
        )
    values = found.exponents()
    return values[0] if alone else values


def spectral_radius(model: Any) -> dict[str, float]:
    """Of every square matrix named W or weight_hh...; a gated layer's, which stack several, have no one radius."""
    found: dict[str, float] = {}
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        parametrized = getattr(module, "parametrizations", None)
        for name in [*dict(module.named_parameters(recurse=False, remove_duplicate=False)), *(parametrized or ())]:
            weight = getattr(module, name)
            square = isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[0] == weight.shape[1]
            if square and (name == "W" or name.startswith("weight_hh")):
                weight = weight.detach().cpu().to(torch.complex128 if weight.is_complex() else torch.float64)
                found[f"{path}.{name}".lstrip(".")] = torch.linalg.eigvals(weight).abs().max().item()
    return found
