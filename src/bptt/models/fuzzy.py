"""A recurrent fuzzy system: a few affine rules on the lagged output, blended by how far each applies."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TakagiSugeno(nn.Module):
    """Rules of the form IF y is low AND y1 is high THEN y⁺ = ..., on the last values y, y1, ... of its own output.

        μ_i(x) = exp(-(x - c_i)² / 2σ²),    i = 1 .. M fuzzy sets                         (1)
        φ_r(s) = Π_j μ_r(j)(s_j) / Σ_q Π_j μ_q(j)(s_j),    s = (y, y1, ...), L values     (2)
        y⁺ = Σ_r φ_r(s) (v_r + A_r (s - p_r) + B_r u),    p_r = (c_r(1), ..., c_r(L))     (3)

    There is a rule r for every choice of a set for each lag, M^L in all; its prototype p_r is the point at the sets'
    centres, and v_r is its output there without an input. The output is fed back: the next s is (y⁺, y, ...). The sets
    mean the same for every lag, since every lag is the same quantity.

    low, high: the centres of the first and the last set, fixed, low < high; choose quantiles of the data.
    sets: the sets' names in ascending order, M >= 2. lags: L >= 1. inputs: the length U of u, >= 0.
    widths: the interval that σ stays in, in units of the mean distance between centres.
    closest: the least distance between neighbouring centres, in the same units, in [0, 1).
    device, dtype: of the parameters, as in torch.nn.

    Parameters: consequents (M^L, L + U + 1): A_r, B_r, v_r, all 0 at first (see `set_affine`); gaps (M - 1,), whose
    softmax divides the range among the centres, evenly at first; spread (), whose sigmoid places σ within `widths`, in
    the middle at first. So the centres stay ordered whatever the optimiser does.
    Call: (inputs, state) -> (outputs, state): inputs (T, ..., U), state s (..., L), the last output first; outputs
    (T, ...). Rows, if any, are on axis 0 of the state.

    Raises ValueError or TypeError, in one line, for arguments, inputs and states that don't fit.
    Cost: M^L (2 L + U + 2) multiplications per row and step; autograd saves about 5 M^L numbers.

    >>> import bptt.models, torch
    >>> model = bptt.models.TakagiSugeno(-1.0, 1.0, sets=("low", "high"), lags=1)
    >>> model.set_affine(torch.tensor([0.5, 1.0, 0.0]))
    >>> outputs, state = model(torch.ones(3, 2, 1), torch.zeros(2, 1))
    >>> outputs[:, 0]
    tensor([1.0000, 1.5000, 1.7500], grad_fn=<SelectBackward0>)
    >>> print(model.rules()[1])
    IF y is high THEN y⁺ = 0.50 + 0.50 (y - 1.00) + 1.00 u

    Source: Takagi & Sugeno 1985, "Fuzzy identification of systems and its applications to modeling and control", IEEE
    Transactions on Systems, Man, and Cybernetics 15(1): rules with affine consequents. Deviations: memberships are
    Gaussian, AND is the product, consequents are expanded around the rule's prototype, and the output is fed back.
    """

    state_batch_dim = 0
    """The axis of the batch rows in the state."""

    def __init__(
        self,
        low: float,
        high: float,
        sets: Sequence[str] = ("low", "medium", "high"),
        lags: int = 2,
        inputs: int = 1,
        *,
        widths: tuple[float, float] = (0.4, 0.8),
        closest: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        low, high, closest = float(low), float(high), float(closest)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"TakagiSugeno(low={low}, high={high}): need finite numbers with low < high.")
        names = [sets] if isinstance(sets, str) else list(sets)
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"TakagiSugeno(sets={sets!r}): give at least two different names, from low to high.")
        for name, value, least in (("lags", lags, 1), ("inputs", inputs, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"TakagiSugeno({name}={value!r}): must be a whole number of at least {least}.")
        if len(widths) != 2 or not 0 < widths[0] < widths[1] < math.inf:
            raise ValueError(f"TakagiSugeno(widths={widths!r}): need finite numbers 0 < narrowest < widest.")
        if not 0 <= closest < 1:
            raise ValueError(f"TakagiSugeno(closest={closest}): must be in [0, 1): at 1 no centre could move.")
        self.low, self.high, self.sets, self.lags, self.inputs = low, high, tuple(names), lags, inputs
        self.widths, self.closest = (float(widths[0]), float(widths[1])), closest
        kind = {"device": device, "dtype": dtype}
        m = len(names)
        self.gaps = nn.Parameter(torch.zeros(m - 1, **kind))
        self.spread = nn.Parameter(torch.zeros((), **kind))
        self.consequents = nn.Parameter(torch.zeros(m**lags, lags + inputs + 1, **kind))
        choices = torch.cartesian_prod(*[torch.arange(m, device=device)] * lags).reshape(-1, lags)
        self.choices: Tensor  # (M^L, L): the set that a rule requires for each lag
        self.register_buffer("choices", choices, False)

    def centres(self) -> Tensor:
        """c of (1), (M,), ascending from low to high."""
        m = len(self.sets) - 1
        shares = self.closest / m + (1 - self.closest) * self.gaps.softmax(0)
        return self.low + (self.high - self.low) * torch.cat([shares.new_zeros(1), shares.cumsum(0)])

    def width(self) -> Tensor:
        """σ of (1), 0-d, in the units of y."""
        narrow, wide = self.widths
        return (self.high - self.low) / (len(self.sets) - 1) * (narrow + (wide - narrow) * self.spread.sigmoid())

    def prototypes(self) -> Tensor:
        """p of (3), (M^L, L)."""
        return self.centres()[self.choices]

    def memberships(self, values: Tensor) -> Tensor:
        """μ of (1) for values (...): (..., M)."""
        return torch.exp(-0.5 * ((values[..., None] - self.centres()) / self.width()) ** 2)

    def firing(self, state: Tensor) -> Tensor:
        """φ of (2) for states (..., L): (..., M^L), which sum to 1."""
        return nn.functional.linear(state, *self._scores()).softmax(-1)

    def set_affine(self, coefficients: Tensor) -> None:
        """Make every rule the same affine law y⁺ = a·s + b·u + c, of coefficients (a, b, c), (L + U + 1,)."""
        if coefficients.shape != self.consequents.shape[1:]:
            wanted = f"({self.lags + self.inputs + 1},)"
            raise ValueError(f"set_affine: coefficients are (a, b, c), {wanted}, not {tuple(coefficients.shape)}.")
        with torch.no_grad():
            self.consequents.copy_(coefficients.expand_as(self.consequents))
            self.consequents[:, -1] += self.prototypes() @ self.consequents[0, : self.lags]

    def labels(self, values: Tensor) -> list[str]:
        """For each of values (N,) the name of the set that it belongs to most."""
        return [self.sets[i] for i in self.memberships(values).argmax(-1).tolist()]

    def rules(self, digits: int = 2) -> list[str]:
        """The rules in words, in the order of `consequents`."""
        lagged = ["y" if j == 0 else f"y{j}" for j in range(self.lags)]
        driven = ["u"] if self.inputs == 1 else [f"u{j + 1}" for j in range(self.inputs)]
        found: list[str] = []
        for row, choice, prototype in zip(
            self.consequents.tolist(), self.choices.tolist(), self.prototypes().tolist(), strict=True
        ):
            premise = " AND ".join(f"{y} is {self.sets[i]}" for y, i in zip(lagged, choice, strict=True))
            terms = [f"({y} {_signed(-p, digits)})" for y, p in zip(lagged, prototype, strict=True)] + driven
            law = "".join(f" {_signed(a, digits)} {term}" for a, term in zip(row, terms, strict=False))
            found.append(f"IF {premise} THEN y⁺ = {row[-1]:.{digits}f}{law}")
        return found

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run len(inputs) steps from `state`; returns the outputs, and the last L of them."""
        self._check(inputs, state)
        weight, bias = self._scores()
        slopes, gains, values = self.consequents.split([self.lags, self.inputs, 1], 1)
        offsets = values[:, 0] - (slopes * self.prototypes()).sum(1)
        driven = nn.functional.linear(inputs, gains, offsets)
        outputs: list[Tensor] = []
        for drive in driven.unbind(0):
            firing = nn.functional.linear(state, weight, bias).softmax(-1)
            y = (firing * (state @ slopes.T + drive)).sum(-1)
            outputs.append(y)
            state = torch.cat([y[..., None], state[..., :-1]], -1)
        return torch.stack(outputs), state

    def _scores(self) -> tuple[Tensor, Tensor]:
        """(2) is a softmax of -|s - p_r|²/2σ²; without -|s|²/2σ², which all rules share, it is linear in s: W s + b."""
        prototypes, square = self.prototypes(), self.width() ** 2
        return prototypes / square, -0.5 * prototypes.square().sum(1) / square

    def _check(self, inputs: Tensor, state: Tensor) -> None:
        for name, value, last in (("inputs", inputs, self.inputs), ("the state", state, self.lags)):
            wanted = f"a tensor ({'T, ' if value is inputs else ''}..., {last})"
            if not isinstance(value, Tensor):
                raise TypeError(f"TakagiSugeno: {name} must be {wanted}, not {type(value).__name__}.")
            if value.dim() == 0 or value.shape[-1] != last:
                raise ValueError(f"TakagiSugeno: {name} must be {wanted}, not {tuple(value.shape)}.")
            if value.dtype != self.consequents.dtype:
                raise TypeError(
                    f"TakagiSugeno: {name} of {value.dtype} don't go with parameters of {self.consequents.dtype}: "
                    f"convert one, e.g. by model.to({value.dtype})."
                )
        if inputs.dim() != state.dim() + 1 or inputs.shape[1:-1] != state.shape[:-1] or len(inputs) == 0:
            raise ValueError(
                f"TakagiSugeno: inputs {tuple(inputs.shape)} need T >= 1 and, between time and the last axis, the rows "
                f"of the state {tuple(state.shape)}."
            )

    def extra_repr(self) -> str:
        """What the module's repr shows."""
        return f"{self.low:.4g}, {self.high:.4g}, sets={self.sets}, lags={self.lags}, inputs={self.inputs}"


def _signed(value: float, digits: int) -> str:
    return f"{'-' if value < 0 else '+'} {abs(value):.{digits}f}"
