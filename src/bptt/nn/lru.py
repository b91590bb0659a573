"""The linear recurrent unit: complex numbers that don't act on one another."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bptt import _errors, _units
from bptt._units import Part, Units
from bptt.nn import fits, kernels, layer


class LRU(nn.Module):
    """A layer of linear units, each a complex number that decays and turns, and a readout.

        h_t = λ ∘ h_{t-1} + γ ∘ (B x_t),  λ = exp(-exp ν + i exp θ),  γ = exp(γ_log)       (1)
        y_t = Re(C h_t) + D x_t                                                           (2)

    No unit acts on another, so what each parameter does to its own unit is all of ∂h/∂θ: for one layer `RTRL` is exact
    with twice as many numbers as it has parameters, for each batch row, however long the stream. For a stack `RTRL`
    works in the general way.

    input_size, hidden_size, output_size: I, H, O, >= 1.
    r_min, r_max: λ is drawn from the ring between these radii, evenly by area; 0 <= r_min < r_max < 1.
    max_phase: exp θ is drawn from [0, max_phase), in radians per step.
    device, dtype: of the parameters, which are real. generator: the source of their first values; None is torch's
        default one.

    Parameters: nu, theta, gamma_log (H,); B_re, B_im (H, I); C_re, C_im (O, H); D (O, I).
    Call: `(inputs, state=None, is_start=None)` -> (outputs, state): inputs (T, B, I) or (T, I), outputs (T, B, O) or
    (T, O), state complex, (1, B, H) or (1, H); None starts from zeros.
    is_start: bool (T, B) or (T,): rows whose state is set to zeros before that step.

    Raises ValueError for arguments, inputs or a state that don't fit.
    Cost: a few operations of torch a step, and the products with B, C and D for all steps at once.

    >>> import bptt.nn, torch
    >>> layer = bptt.nn.LRU(3, 16, 2)
    >>> outputs, state = layer(torch.zeros(9, 5, 3))
    >>> outputs.shape, state.shape, state.dtype
    (torch.Size([9, 5, 2]), torch.Size([1, 5, 16]), torch.complex64)

    Source: Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences",
    https://arxiv.org/abs/2303.06349, without the blocks around the layer; its RTRL: Zucchet et al. 2023, "Online
    learning of long-range dependencies", https://arxiv.org/abs/2305.15947.
    """

    state_batch_dim = 1
    """The axis of the batch rows in the state."""
    batch_first = False
    """Time is axis 0."""
    bidirectional = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        r_min: float = 0.9,
        r_max: float = 0.999,
        max_phase: float = math.pi / 10,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        for name, value in sizes.items():
            _errors.check_count(value, f"LRU({name}={value!r}): {name}")
        if not 0 <= r_min < r_max < 1:
            raise ValueError(f"LRU(r_min={r_min!r}, r_max={r_max!r}): |λ| lies in a ring, 0 <= r_min < r_max < 1.")
        if not 0 < max_phase < math.inf:
            raise ValueError(f"LRU(max_phase={max_phase!r}): must be an angle above 0, such as math.pi / 10.")
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.r_min, self.r_max, self.max_phase = r_min, r_max, max_phase

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.nu, self.theta, self.gamma_log = empty(hidden_size), empty(hidden_size), empty(hidden_size)
        self.B_re, self.B_im = empty(hidden_size, input_size), empty(hidden_size, input_size)
        self.C_re, self.C_im = empty(output_size, hidden_size), empty(output_size, hidden_size)
        self.D = empty(output_size, input_size)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the parameters afresh: λ in the ring, γ² = 1 - |λ|², B and C of variance 1/(2 I) and 1/H, D of 1/I."""
        even = torch.rand(self.hidden_size, dtype=torch.float64, generator=generator).clamp_min(1e-12)
        square = even * (self.r_max**2 - self.r_min**2) + self.r_min**2
        self.nu.copy_((-0.5 * square.log()).log())
        angle = torch.rand(self.hidden_size, dtype=torch.float64, generator=generator).clamp_min(1e-12)
        self.theta.copy_((self.max_phase * angle).log())
        self.gamma_log.copy_(0.5 * (1 - square).log())
        for parameter, variance in (
            *((p, 0.5 / self.input_size) for p in (self.B_re, self.B_im)),
            *((p, 1 / self.hidden_size) for p in (self.C_re, self.C_im)),
            (self.D, 1 / self.input_size),
        ):
            drawn = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.copy_(drawn * variance**0.5)

    @property
    def eigenvalues(self) -> Tensor:
        """λ, complex (H,)."""
        return torch.polar((-self.nu.exp()).exp(), self.theta.exp())

    def forward(
        self, inputs: Tensor, state: Tensor | None = None, is_start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Outputs and the state after the last step, as the class says."""
        self._check(inputs, state)
        fits.keywords(self, inputs, is_start=is_start)
        start = None if is_start is None else layer.sequence_keywords(self, inputs, is_start, None)[0]
        single = inputs.dim() == 2
        x = inputs.unsqueeze(1) if single else inputs
        given = self.zero_state(inputs) if state is None else state
        h = given.unsqueeze(1)[0] if single else given[0]
        gamma = self.gamma_log.exp()
        real = functional.linear(x, self.B_re), functional.linear(x, self.B_im)
        driven = torch.complex(real[0] * gamma, real[1] * gamma)
        turn, before, after = self.eigenvalues, list[Tensor](), list[Tensor]()
        for t, u in enumerate(driven.unbind()):
            if start is not None:
                h = torch.where(start[t][:, None], h.new_zeros(()), h)
            before.append(h)
            h = turn * h + u
            after.append(h)
        states, last = torch.stack(after), h[None]
        y = functional.linear(states.real, self.C_re) - functional.linear(states.imag, self.C_im)
        y = y + functional.linear(x, self.D)
        last = last.squeeze(1) if single else last
        if _units.listened():
            _units.tell(lambda: self._units(x, torch.stack(before), driven, [given], [last]))
        return y.squeeze(1) if single else y, last

    def zero_state(self, inputs: Tensor) -> Tensor:
        """The zeros to start from, complex, (1, B, H) for inputs (T, B, I), (1, H) for inputs (T, I)."""
        kind = torch.complex128 if inputs.dtype == torch.float64 else torch.complex64
        return torch.zeros(1, *inputs.shape[1:-1], self.hidden_size, dtype=kind, device=inputs.device)

    def _units(self, x: Tensor, before: Tensor, driven: Tensor, begin: list[Tensor], end: list[Tensor]) -> Units:
        """What each parameter did to its own unit, a complex number being two."""
        turn, gamma = self.eigenvalues, self.gamma_log.exp()
        keep = torch.stack([turn.real, -turn.imag, turn.imag, turn.real]).unflatten(0, (2, 2))
        moved, nothing = before * turn, torch.zeros_like(gamma)

        def each(derivative: Tensor) -> Tensor:
            return torch.stack([derivative.real, derivative.imag], 2).unsqueeze(3)

        T, B, H = before.shape
        of_b = [torch.stack(pair)[:, None].expand(T, B, 2, 1, H) for pair in ((gamma, nothing), (nothing, gamma))]
        parts = [
            Part(self.nu, each(moved * -self.nu.exp()), None),
            Part(self.theta, each(moved * torch.complex(nothing, self.theta.exp())), None),
            Part(self.gamma_log, each(driven), None),
            Part(self.B_re, of_b[0], x),
            Part(self.B_im, of_b[1], x),
        ]
        return Units(keep.expand(T, B, 2, 2, H), parts, begin, end, kernels.implementation(x), alone=True)

    def _check(self, inputs: Tensor, state: Tensor | None) -> None:
        if inputs.dim() not in (2, 3) or inputs.shape[-1] != self.input_size or inputs.shape[0] == 0:
            raise ValueError(
                f"LRU: inputs have shape {tuple(inputs.shape)}, not (T, B, {self.input_size}) or "
                f"(T, {self.input_size}) with T >= 1."
            )
        fits_in = (1, *inputs.shape[1:-1], self.hidden_size)
        if state is not None and (tuple(state.shape) != fits_in or not state.is_complex()):
            raise ValueError(
                f"LRU: the state is {tuple(state.shape)}, {state.dtype}; inputs {tuple(inputs.shape)} need {fits_in}, "
                f"complex."
            )

    def extra_repr(self) -> str:
        """What the module's repr shows."""
        return f"{self.input_size}, {self.hidden_size}, {self.output_size}"
