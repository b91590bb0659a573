"""The leaky network of computational neuroscience, with noise."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from bptt.nn import fits, layer, plain
from bptt.nn.cells.base import ACTIVATIONS, activated
from bptt.nn.kernels.sequence import Maybe, Plan, Tensors
from bptt.nn.uncompiled import uncompiled

FORMS = ("rate", "voltage")
_INTEGERS = (torch.int64, torch.int32)


class CTRNN(nn.Module):
    """A leaky (continuous-time) recurrent network with noise, on fused kernels: Euler steps of α = dt/τ.

        h_t = (1 - α) h_{t-1} + α (f(W h_{t-1} + U x_t + b) + sqrt(2/α) σ ξ_t)            (1) form="rate"
        h_t = (1 - α) h_{t-1} + α (W f(h_{t-1}) + U x_t + b + sqrt(2/α) σ ξ_t)            (2) form="voltage"

    ξ_t are independent standard normal numbers. (1) discretises the r-equation, τ dr/dt = -r + f(W r + I), (2) the
    v-equation, τ dv/dt = -v + I + W f(v), of Miller & Fumarola 2012, who show that the two are equivalent. (2) with
    relu is the network of Song, Yang & Wang 2016, whose rates are f(h). With α = 1, σ = 0 (1) is `torch.nn.RNN`.

    input_size, hidden_size: I and H, >= 1.
    alpha: α, in (0, 1]: a number, or a tensor (H,) of one for each unit.
    sigma: σ >= 0, a number. The attribute of that name may be changed, for example to 0 for a run without noise.
        `state_dict` holds α but not σ.
    nonlinearity: f: "tanh", "relu", "softplus", "sigmoid" or "identity". form: "rate" or "voltage".
    bias: whether there is b.
    learn_alpha: whether α is learned, in (0, 1), as its logit, starting from `alpha` < 1.
    learn_initial: whether the state that a sequence starts from is learned, starting from zeros; else it is zeros.
    device, dtype: of the parameters. generator: the source of their first values; None is torch's default one.

    Parameters: weight_ih U (H, I), weight_hh W (H, H), bias b (H,) or None, alpha_logit, () or (H,), or None, and
    initial (H,) or None. Dale's law and connectivity: see `Dale` and `Masked`.
    Call: `(inputs, state=None, is_start=None, cotangent_weight=None, embedding=None)` -> (outputs, state). Inputs are
    (T, B, I) or (T, I), outputs h_1, ..., h_T, (T, B, H) or (T, H).
    state: h, (1, B, H) or (1, H), and with noise (h, clock, key): `clock` counts the steps, `key` is drawn from torch's
        default generator if the state is None; both are 0-d and int64. ξ is a function of key, clock, row and unit, so
        that neither cutting a sequence nor replaying it changes the noise. None starts afresh.
    is_start, cotangent_weight, embedding: as in `RNN`; rows start anew from the initial state, clock and key continue.

    Float32 on the CPU runs on the kernels, other dtypes and devices and autocast on torch's operators, with the same ξ.
    Raises ValueError or TypeError for arguments, inputs or states that don't fit.
    Cost: as `RNN`; 2 numbers (rate) or 3 (voltage) per unit, row and step are saved for the backward pass, and no ξ.

    >>> import bptt.nn, torch
    >>> layer = bptt.nn.CTRNN(3, 50, alpha=0.2, sigma=0.05, nonlinearity="relu", form="voltage")
    >>> inputs = torch.randn(9, 2, 3)
    >>> outputs, (h, clock, key) = layer(inputs)
    >>> outputs.shape, h.shape, int(clock)
    (torch.Size([9, 2, 50]), torch.Size([1, 2, 50]), 9)
    >>> first, state = layer(inputs[:4], (torch.zeros(1, 2, 50), torch.tensor(0), key))
    >>> torch.allclose(layer(inputs[4:], state)[0], outputs[4:], atol=1e-6)
    True

    Source: Miller & Fumarola 2012, Neural Computation 24(1), equations 1 and 2; Song, Yang & Wang 2016, PLoS
    Computational Biology 12(2), e1004792; Salmon et al. 2011 for the generator, Threefry.
    """

    batch_first = False
    """Time is axis 0."""
    bidirectional = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        alpha: float | Tensor,
        sigma: float = 0.0,
        nonlinearity: str = "tanh",
        form: str = "rate",
        bias: bool = True,
        learn_alpha: bool = False,
        learn_initial: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"CTRNN({name}={value!r}): must be a whole number of at least 1.")
        for name, value, known in (("nonlinearity", nonlinearity, ACTIVATIONS), ("form", form, FORMS)):
            if value not in known:
                raise ValueError(f"CTRNN({name}={value!r}) is unknown: use one of {', '.join(map(repr, known))}.")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.nonlinearity, self.form, self.sigma = nonlinearity, form, sigma
        where: Any = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size, **where))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size, **where))
        self.bias = nn.Parameter(torch.empty(hidden_size, **where)) if bias else None
        leak = _leak(alpha, hidden_size, learn_alpha)
        self.alpha_logit = nn.Parameter(leak.logit().to(self.weight_hh)) if learn_alpha else None
        self.leak: Maybe  # (2, H): α and sqrt(2 α)
        fixed = None if learn_alpha else torch.stack([leak, (2 * leak).sqrt()]).reshape(2, -1).expand(2, hidden_size)
        self.register_buffer("leak", None if fixed is None else fixed.to(self.weight_hh, copy=True).contiguous())
        self.initial = nn.Parameter(torch.zeros(hidden_size, **where)) if learn_initial else None
        self.reset_parameters(generator)

    @property
    def alpha(self) -> Tensor:
        """α, (H,), or () if one is learned for all units."""
        if self.alpha_logit is not None:
            return self.alpha_logit.sigmoid()
        assert self.leak is not None
        return self.leak[0]

    @property
    def sigma(self) -> float:
        """σ."""
        return self._sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"CTRNN(sigma={value!r}): the noise's size is a finite number of at least 0.")
        self._sigma = float(value)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw U, W and b as torch.nn.RNN does, uniform within 1/sqrt(H); α and the initial state stay."""
        bound = self.hidden_size**-0.5
        for parameter in (self.weight_ih, self.weight_hh, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @uncompiled
    def forward(
        self,
        input: Tensor,
        state: Any = None,
        is_start: Tensor | None = None,
        cotangent_weight: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Outputs and the state after the last step, as the class says."""
        if isinstance(input, PackedSequence):
            raise TypeError(
                "CTRNN takes no PackedSequence: pass padded inputs, and is_start= or a mask where rows end."
            )
        if isinstance(input, Tensor) and input.is_floating_point() and torch.is_autocast_enabled(input.device.type):
            input = input.to(self.weight_hh.dtype)  # what a layer before this one gives, already rounded
        shown = input if embedding is None else layer.embedded(self, input, embedding)
        self._check(shown)
        fits.keywords(self, shown, is_start=is_start, cotangent_weight=cotangent_weight)
        if is_start is not None or cotangent_weight is not None:
            is_start, cotangent_weight = layer.sequence_keywords(self, shown, is_start, cotangent_weight)
        single = shown.dim() == 2
        steps, rows = len(shown), 1 if single else shown.shape[1]
        h, noise = self._state(state, shown)
        plan = Plan(f"{self.form}_{self.nonlinearity}".upper(), steps, rows, start=is_start, weight=cotangent_weight)
        if noise is not None:
            plan.noise = (int(noise[1]), int(noise[0]))
        weights = (self.weight_ih, self.weight_hh, self.bias)
        fused = fits.served(shown) and all(w is None or type(w) in fits.PLAIN for w in (*weights, h))
        x = input.unsqueeze(1) if single else input
        if embedding is not None:
            plan.ids = x.contiguous().long() if fused and fits.few(embedding, input) else None
            x = functional.embedding(x, embedding) if plan.ids is None else embedding
        h = h.unsqueeze(1) if single and h is not None else h
        y, last = self._run(plan, x, h, weights, fused)
        y, last = (y.squeeze(1), last.squeeze(1)) if single else (y, last)
        return y, last if noise is None else (last, torch.as_tensor(noise[0] + steps, device=last.device), noise[1])

    def _run(
        self, plan: Plan, x: Tensor, h: Maybe, weights: tuple[Tensor, Tensor, Maybe], fused: bool
    ) -> tuple[Tensor, Tensor]:
        """Outputs (T, B, H) and h (1, B, H) after the last step."""
        moves = self.form == "voltage" and self.nonlinearity in ("sigmoid", "softplus")  # f(0) isn't 0
        other = self.initial is not None or moves
        if h is None and (other or not fused):
            h = self._initial(x, plan.rows)
        anew = self._initial(x, 1)[0, 0] if other and plan.start is not None else None
        states, starts = self._both(h), self._both(anew)
        if fused:
            y, last = layer.on_kernels(plan, Tensors(x, *states, *weights, None, *starts, self._by_unit(x)))
        else:
            state, given, anews = (tuple(t for t in some if t is not None) for some in (states, weights, starts))
            y, last = plain.run(plan, x, state, given, anews, self._by_unit(x))
        return y, last[0]

    def _both(self, h: Maybe) -> tuple[Maybe, Maybe]:
        """The states of the cell; the second is f(h) if that is what the recurrent weights multiply."""
        return h, activated(self.nonlinearity, h) if h is not None and self.form == "voltage" else None

    def _by_unit(self, x: Tensor) -> Tensor:
        """α and the noise's size sqrt(2 α) σ, (2, H)."""
        if self.alpha_logit is None:
            assert self.leak is not None
            leak = self.leak if self.leak.dtype is x.dtype else self.leak.to(x.dtype)
        else:
            alpha = self.alpha_logit.sigmoid().to(x.dtype).expand(self.hidden_size)
            leak = torch.stack([alpha, (2 * alpha).sqrt()])
        return leak * leak.new_tensor(((1.0,), (self._sigma,))) if self._sigma else leak

    def _initial(self, x: Tensor, rows: int) -> Tensor:
        """The state that a sequence starts from, (1, B, H)."""
        initial = x.new_zeros(self.hidden_size) if self.initial is None else self.initial.to(x.dtype)
        return initial.expand(1, rows, -1)

    def _state(self, state: Any, x: Tensor) -> tuple[Maybe, tuple[Tensor | int, Tensor] | None]:
        """h as it was given, or None, and (clock, key) if there is noise."""
        if state is None:
            if not self.sigma:
                return None, None
            integer: Any = {"dtype": torch.int64, "device": x.device}
            return None, (0, torch.randint(2**63 - 1, (), **integer))
        parts = list(state) if isinstance(state, tuple | list) else [state]
        wanted = "(h, clock, key), as sigma is above 0" if self.sigma else "h alone, as sigma is 0"
        if len(parts) != (3 if self.sigma else 1) or not all(isinstance(part, Tensor) for part in parts):
            raise ValueError(
                f"CTRNN: the state is {len(parts)} leaves, not {wanted}: pass what a call returned, or None."
            )
        h, *noise = parts
        expected = (1, *x.shape[1:-1], self.hidden_size)
        if h.shape != expected or h.dtype != x.dtype or h.device != x.device:
            got = f"{tuple(h.shape)}, {h.dtype}, on {h.device}"
            raise ValueError(f"CTRNN: the state's h is {got}; these inputs need {expected}, {x.dtype}, on {x.device}.")
        for name, part in zip(("clock", "key"), noise, strict=False):
            if part.dim() or part.dtype not in _INTEGERS:
                raise ValueError(f"CTRNN: the state's {name} is {tuple(part.shape)}, {part.dtype}, not 0-d and int64.")
        return h, (noise[0], noise[1]) if noise else None

    def _check(self, x: Any) -> None:
        if not isinstance(x, Tensor) or x.dim() not in (2, 3) or x.shape[-1] != self.input_size or not x.numel():
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            wide = self.input_size
            raise ValueError(f"CTRNN: inputs are {got}, not (T, B, {wide}) or (T, {wide}), with no axis of length 0.")
        if (x.dtype, x.device) != (self.weight_hh.dtype, self.weight_hh.device):
            ours = f"{self.weight_hh.dtype}, on {self.weight_hh.device}"
            raise ValueError(f"CTRNN: inputs are {x.dtype}, on {x.device}; the parameters are {ours}.")

    def extra_repr(self) -> str:
        """What the module's repr shows."""
        least, most = float(self.alpha.min()), float(self.alpha.max())
        alpha = f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
        sizes = f"{self.input_size}, {self.hidden_size}, alpha={alpha}, sigma={self.sigma:g}"
        return f"{sizes}, nonlinearity={self.nonlinearity!r}, form={self.form!r}"


def _leak(alpha: Any, units: int, learned: bool) -> Tensor:
    """α as float64, () or (H,)."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | Tensor):
        raise TypeError(f"CTRNN(alpha={alpha!r}): α = dt/τ is a number, or a tensor of one for each unit.")
    leak = torch.as_tensor(alpha).detach().double()
    if tuple(leak.shape) not in ((), (units,)):
        raise ValueError(f"CTRNN: alpha is {tuple(leak.shape)}, not a number or ({units},), one for each unit.")
    if not bool(((leak > 0) & (leak <= 1)).all()):
        got = repr(alpha) if leak.dim() == 0 else f"a tensor from {float(leak.min()):g} to {float(leak.max()):g}"
        raise ValueError(f"CTRNN(alpha={got}): α = dt/τ lies in (0, 1]: make dt at most the time constant τ.")
    if learned and bool((leak == 1).any()):
        raise ValueError("CTRNN(alpha=1, learn_alpha=True): a learned α lies below 1: start from 0.99 or less.")
    return leak
