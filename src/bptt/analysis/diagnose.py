"""Vanishing and exploding made visible: how far back a recurrence's credit reaches, and how fast it grows or fades."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _errors, _recurrence, _stream, _tree
from bptt._loss import Loss
from bptt._options import Options
from bptt._recurrence import Recurrence
from bptt._rows import batchable
from bptt._run import Run
from bptt._snapshot import untouched
from bptt._stream import Chunk
from bptt._torch import unwrapped
from bptt._tree import Tree
from bptt._window_loss import PerWindow
from bptt.analysis.diagnosis import Diagnosis
from bptt.analysis.spectrum import Spectrum, spectral_radius
from bptt.analysis.sweep import Sweep, tapes

CHAINS = {1: 1024, 10: 1024, 100: 256}
"""Lags whose Jacobian chain is taken -> up to how many numbers of state a row; beyond, it takes minutes."""


def diagnose(
    model: Recurrence,
    loss: Loss,
    sequence: Any,
    state: Tree = None,
    *,
    initial_state: Any = None,
    state_batch_dim: Any = None,
    time_dim: int = 0,
    max_lag: int | None = None,
    exponents: int | None = None,
    discard: int | None = None,
    singular_lags: Sequence[int] | None = None,
    truncations: Sequence[int] | None = None,
    params: Iterable[Tensor] | None = None,
    fraction: float = 0.01,
    levels: Sequence[float] = (0.1, 0.5, 0.9),
) -> Diagnosis:
    """Measure how credit travels back through a recurrence: norms by lag, growth rate, memory, what truncation drops.

        ∂l_t/∂s_{t-k-1} = ∂l_t/∂s_{t-k} · ∂s_{t-k}/∂s_{t-k-1}                             (1)
        Q_{t-1} R_t = (∂s_t/∂s_{t-1})ᵀ Q_t,   λ_i = mean over t of log |R_t,ii|           (2)
        dL/dθ - g_τ = Σ_t Σ_{k>=τ} ∂l_t/∂s_{t-k} · ∂F_{t-k}/∂θ                            (3)
        dL/dθ - w_τ = Σ_t Σ_{k>t mod τ} ∂l_t/∂s_{t-k} · ∂F_{t-k}/∂θ                       (4)

    s_{t-k} is **the state before step t-k+1**, so lags are k = 1 .. t+1 and lag 1 is the state that step t starts from:
    of a black box, step t's output and s_t leave the same call, so that lag 0 can't be seen from outside. l_t is the
    loss of step t averaged over all axes but time, as in `unroll`; each row's cotangent so has the factor 1/B. Leaves
    of the state that no loss depends on, at once or later, such as a counter, are left out of everything.

    model, loss, state, initial_state, state_batch_dim, time_dim: as in `unroll`. Rows are told apart where the axis of
        the batch is known; they must then not act on one another (batch norm in training does), else (2) is wrong.
    sequence: `Chunk(inputs, targets, is_start, mask)` or a plain tuple, T steps; graphs that it carries are left alone.
    max_lag: 1 .. T; None is min(T, 100). exponents: of each row; None is min(state size, 32).
    discard: QR steps left out of (2), the first ones being the last in time; None is T // 10.
    singular_lags: lags whose Jacobian chain is taken, ending at the last state; None is 1, 10 and 100 as far as
        max_lag, 1 and 10 for more than 256 numbers per row, none for more than 1024.
    truncations: the τ of (3) and (4), 1 .. max_lag; None is 1, 2, 4, ...
    params: θ; None is what model and loss register. What a learned initial state gets is left out.
    fraction: of the largest mean norm, in (0, 1), below which credit counts as forgotten. levels: in [0, 1].

    Returns a `Diagnosis`. Parameters, buffers, `.grad`, modes and random-number states are as before.
    Raises ValueError or TypeError for bad arguments, and for a state without a floating leaf or that no loss depends
    on; NonFiniteLossError.
    Cost: T calls of one step, held at once as one full graph; then a step's vjp max_lag + exponents times for each of
    them, in one vectorised call where every operator allows it, state-size times for the largest of `singular_lags`
    steps, and two parameter vjps for each truncation and step (as many gradients in memory).

    >>> import bptt, torch
    >>> halve = bptt.scan(lambda x, s: (0.5 * s + x, 0.5 * s + x))
    >>> square = lambda outputs, targets: (outputs - targets) ** 2
    >>> found = bptt.diagnose(halve, square, (torch.ones(40), torch.zeros(40)), torch.zeros(()))
    >>> found.regime, round(found.growth_rate, 4), found.memory_length
    ('vanishing', -0.6931, 8)

    Source: Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013; Benettin et al. 1980 and Engelken, Wolf &
    Abbott 2023 for (2), see `lyapunov`, here with transposed Jacobians, backward in time: the same exponents, and the
    ones that gradients feel.
    """
    _errors.check_gradient_possible()
    if isinstance(loss, PerWindow):
        raise TypeError(
            "diagnose: credit by lag is that of single steps, which per_window has not: pass a loss by step."
        )
    _recurrence.check_model(model, time_dim)
    model = unwrapped(model)  # compiled code can't be differentiated twice
    chunk = _detached(sequence, time_dim)
    if not callable(initial_state):
        _tree.check_no_graph(initial_state, "initial_state")
    _tree.check_tensors(state, "state")
    begin: Any = {"initial_state": initial_state, "state_batch_dim": state_batch_dim, "time_dim": time_dim}
    options = Options.of(model, loss, _tree.detach(state), params=params, **begin)
    steps = _tree.leaves(chunk.inputs)[0].shape[time_dim]
    theta = _registered(model, loss) if options.problem.params is None else options.problem.params
    lags = _max_lag(max_lag, steps)
    taus = _within(truncations, [2**i for i in range(lags.bit_length())], lags, "truncations")
    skip = _discard(discard, steps)
    _fractions(fraction, levels)

    tensors = [*theta, *_tree.leaves(chunk.inputs), *_tree.leaves(options.state)]
    with untouched(model, loss, tensors, theta), batchable(model):
        graphs, rows = tapes(Run(options, [chunk]))
        usual = [lag for lag, largest in CHAINS.items() if lag <= lags and rows.size <= largest]
        singular = _within(singular_lags, usual, lags, "singular_lags")
        count = _exponents(exponents, rows.size)
        spectrum = Spectrum(rows.count, rows.size, max(count, min(2, rows.size)), skip, rows.device)
        sweep = Sweep(rows, lags, taus, theta, singular, spectrum)
        resets = chunk.is_start
        if resets is not None:
            resets = resets.movedim(min(time_dim, resets.dim() - 1), 0)
        for t in reversed(range(steps)):
            sweep.step(t, graphs.pop(), None if resets is None else resets[t])
        torch.clear_autocast_cache()  # casts whose graphs are gone
    return _diagnosis(sweep, steps, count, fraction, levels, spectral_radius(model))


def _diagnosis(
    sweep: Sweep, steps: int, exponents: int, fraction: float, levels: Sequence[float], radius: dict[str, float]
) -> Diagnosis:
    """What a finished sweep over so many steps has found."""
    rows, lags = sweep.rows, sweep.lags
    norms = torch.full((lags, steps, rows.count), math.nan, dtype=torch.float64)
    for lag, values in enumerate(sweep.norms):
        norms[lag, lag:] = torch.stack(values[::-1]).cpu()
    known = [norms[lag, lag:].flatten() for lag in range(lags)]
    mean = torch.stack([values.mean() for values in known])
    full, *parts = sweep.gradient_norms()
    shares = [part / full if full else math.nan for part in parts]
    taus = sweep.truncations
    return Diagnosis(
        steps=steps,
        rows=rows.count,
        state_size=rows.size,
        norms=norms,
        mean=mean,
        quantiles=torch.stack([_quantiles(values, levels) for values in known], 1),
        levels=tuple(levels),
        growth_rates=sweep.qr.growth(),
        exponents=sweep.qr.exponents()[:, :exponents],
        singular_values={lag: sweep.singular_values[lag] for lag in sweep.singular},
        memory_length=_memory_length(mean, fraction),
        fraction=fraction,
        spectral_radius=radius,
        gradient_norm=full,
        dropped=dict(zip(taus, shares, strict=False)),
        windows=dict(zip(taus, shares[len(taus) :], strict=True)),
    )


def _detached(sequence: Any, time_dim: int) -> Chunk:
    """The chunk without the graphs it may carry, which are not ours to free; at least one step long."""
    inputs, targets, is_start, mask = _stream.checked_chunk(sequence, time_dim)
    leaf = _tree.leaves(inputs)[0]
    if leaf.shape[time_dim] == 0:
        raise ValueError(f"sequence has no step (T = 0): its inputs have shape {_tree.shape(leaf)}; pass at least one.")
    return Chunk(_tree.detach(inputs), _tree.detach(targets), is_start, mask)


def _registered(model: Any, loss: Any) -> list[Tensor]:
    modules = [thing for thing in (unwrapped(model), loss) if isinstance(thing, nn.Module)]
    unique = {id(p): p for p in chain(*(module.parameters() for module in modules)) if p.requires_grad}
    return list(unique.values())


def _max_lag(value: Any, steps: int) -> int:
    if value is None:
        return min(steps, 100)
    _errors.check_count(value, "max_lag")
    if value > steps:
        raise ValueError(
            f"max_lag={value} reaches beyond the sequence's {steps} steps: the furthest state is the one before step "
            f"0, at lag {steps}. Use max_lag={steps} or less, or a longer sequence."
        )
    return value


def _within(values: Sequence[int] | None, default: list[int], bound: int, name: str) -> list[int]:
    """Sorted whole numbers in [1, bound]."""
    if values is None:
        return default
    if isinstance(values, Tensor | str) or not isinstance(values, Iterable):
        raise TypeError(f"{name}={values!r} must be whole numbers in a list, such as [1, 10].")
    for value in values:
        _errors.check_count(value, name)
        if value > bound:
            raise ValueError(f"{name} holds {value}, which is beyond max_lag={bound}: raise max_lag or leave it out.")
    return sorted(set(values))


def _discard(value: Any, steps: int) -> int:
    if value is None:
        return steps // 10
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < steps:
        raise ValueError(
            f"discard={value!r} must be a whole number from 0 to {steps - 1}, to leave one of {steps} steps."
        )
    return value


def _exponents(value: Any, size: int) -> int:
    if value is None:
        return min(size, 32)
    _errors.check_count(value, "exponents")
    if value > size:
        raise ValueError(f"exponents={value} of a state of {size} real numbers per row: there are {size}.")
    return value


def _fractions(fraction: Any, levels: Any) -> None:
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction!r} must lie between 0 and 1: a share of the largest mean norm.")
    if not isinstance(levels, Sequence) or not all(isinstance(q, int | float) and 0 <= q <= 1 for q in levels):
        raise ValueError(f"levels={levels!r} must be numbers from 0 to 1, such as (0.1, 0.5, 0.9).")


def _quantiles(values: Tensor, levels: Sequence[float]) -> Tensor:
    """As torch.quantile, for any number of values."""
    ordered = values.sort().values
    at = torch.tensor(levels, dtype=torch.float64) * (len(ordered) - 1)
    return torch.lerp(ordered[at.floor().long()], ordered[at.ceil().long()], at.frac())


def _memory_length(mean: Tensor, fraction: float) -> int | None:
    low = (mean < fraction * mean.max()).tolist()
    if not low[-1]:
        return None
    return 1 + max(lag for lag, below in enumerate(low, 1) if not below)
