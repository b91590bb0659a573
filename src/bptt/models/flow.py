"""Two-dimensional incompressible flow in a periodic box, differentiable in its viscosity, its forcing and its state."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fft import fft2, ifft2


class Flow(nn.Module):
    """The vorticity equation on [0, 2π)², pseudo-spectral, one Runge-Kutta step per time step.

        ∂w/∂t + (ū + u)·∇w = ν ∇²w + f,   ∇·u = 0,   w = ∂u_y/∂x - ∂u_x/∂y                (1)
        f(x) = Σ_m a_m cos(k_m·x) + b_m sin(k_m·x)                                        (2)

    It is a recurrence: the state is the spectrum of w, complex, as `torch.fft.fft2` gives it. Grids are indexed
    [i, j] with x = 2πi/n, y = 2πj/n; `grid`, `spectrum`, `vorticity` and `observe` convert between them.

    size: n, the points per side, >= 4. Wavenumbers with both |components| < n/3 are kept (the 2/3 rule).
    viscosity: ν > 0, a float. modes: the (k_x, k_y) of (2), whole numbers; none may be zero, cut off by the 2/3 rule,
    or given twice, even as its opposite. coefficients: first values (a_m, b_m), (M, 2); default zeros.
    dt: the time step, > 0. mean: ū, the velocity (ū_x, ū_y) of the whole box. device, dtype: of the parameters, as in
    torch.nn; the state has the corresponding complex dtype.

    Parameters: log_viscosity (), coefficients (M, 2).
    Call: (inputs, state) -> (outputs, state). inputs (T, ...): any tensor; only its length matters. state
    (..., n, n): the spectrum of a real field, so its entries at k and -k are conjugates; leading axes are independent
    flows. outputs (T, ..., n, n): the state after each step.

    Raises ValueError or TypeError, in one line, for arguments and states that don't fit.
    Cost: 8 complex transforms per step of each flow; autograd saves 8 complex grids per step. If dt is too long for the
    grid (dt · n/3 · the largest |ū_x + u_x| + |ū_y + u_y| above about 2.8), the flow blows up and the engine raises
    NonFiniteLossError.

    >>> import torch
    >>> from bptt.models import Flow
    >>> flow = Flow(16, viscosity=0.05, modes=[(1, 2)], coefficients=[(0.3, 0.0)])
    >>> start = flow.random_state(generator=torch.Generator().manual_seed(0))
    >>> outputs, state = flow(torch.zeros(5), start)
    >>> flow.vorticity(outputs).shape, state.dtype
    (torch.Size([5, 16, 16]), torch.complex64)

    Method: the products u_x² - u_y² and u_x u_y alone are transformed (Basdevant's reduction,
    https://rmsrosa.github.io/2dnsepervortjl/pages/basdevant), here as the two parts of one complex square; time steps
    by the classical Runge-Kutta method of order 4, after the viscous term is integrated exactly. See `_step`, `_Terms`.
    """

    def __init__(
        self,
        size: int,
        viscosity: float,
        modes: Sequence[tuple[int, int]] = (),
        coefficients: Sequence[tuple[float, float]] | Tensor | None = None,
        *,
        dt: float = 0.02,
        mean: tuple[float, float] = (0.0, 0.0),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 4:
            raise ValueError(f"Flow(size={size!r}): the points per side must be a whole number of at least 4.")
        for name, value in {"viscosity": viscosity, "dt": dt}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"Flow({name}={value!r}): must be a finite number above 0.")
        self.size, self.dt = size, float(dt)
        self.modes = _checked_modes(modes, size)
        self.mean = (float(mean[0]), float(mean[1]))
        kind = {"device": device, "dtype": dtype}
        self.log_viscosity = nn.Parameter(torch.tensor(math.log(viscosity), **kind))
        given = torch.zeros(len(self.modes), 2) if coefficients is None else coefficients
        given = torch.as_tensor(given, **kind).detach().clone()
        if given.shape != (len(self.modes), 2):
            raise ValueError(
                f"Flow: {len(self.modes)} modes need coefficients ({len(self.modes)}, 2), of a cosine and a sine each, "
                f"not {tuple(given.shape)}."
            )
        self.coefficients = nn.Parameter(given.to(self.log_viscosity.dtype))
        self._constants()

    @property
    def viscosity(self) -> Tensor:
        """ν, a 0-d tensor that carries the gradient of `log_viscosity`."""
        return self.log_viscosity.exp()

    def force(self) -> Tensor:
        """f of (2) on the grid, (n, n)."""
        return 2 * ifft2(self._half_force()).real

    def grid(self) -> tuple[Tensor, Tensor]:
        """The coordinates x and y of the grid's points, each (n, n), in [0, 2π)."""
        line = torch.arange(self.size, dtype=torch.float64) * (2 * math.pi / self.size)
        x, y = torch.meshgrid(line, line, indexing="ij")
        return x.to(self.log_viscosity), y.to(self.log_viscosity)

    def spectrum(self, vorticity: Tensor) -> Tensor:
        """The state for a vorticity (..., n, n) on the grid; its mean and what the 2/3 rule cuts off are dropped."""
        return fft2(vorticity) * self.kept

    def vorticity(self, spectrum: Tensor) -> Tensor:
        """The vorticity on the grid, (..., n, n), of states (..., n, n)."""
        return ifft2(spectrum).real

    def observe(self, spectrum: Tensor, points: Tensor) -> Tensor:
        """The vorticity of states (..., n, n) at points (P, 2), grid indices (i, j): (..., P)."""
        return self.vorticity(spectrum)[..., points[:, 0], points[:, 1]]

    def random_state(self, largest: float = 4.0, rms: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """A random state (n, n): white noise in the wavenumbers 0 < |k| <= largest, >= 1, of that rms vorticity."""
        if not largest >= 1:
            raise ValueError(f"random_state(largest={largest!r}): only the wavenumber 0 is below 1: take at least 1.")
        noise = torch.randn(self.size, self.size, generator=generator, dtype=torch.float64).to(self.square)
        state = self.spectrum(noise) * (self.square <= largest**2)
        return state * (rms / self.vorticity(state).square().mean().sqrt())

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """len(inputs) steps from `state`: the states after each, and the last one."""
        self._check(inputs, state)
        half = torch.exp(self.viscosity * self.square * (-self.dt / 2)).to(state.dtype)
        pairs = (self.velocity, self.mean_velocity, self.products)
        velocity, mean, products = (torch.view_as_complex(pair) for pair in pairs)
        terms = _Terms(half, velocity, mean, products, self._half_force(), self.opposite)
        outputs: list[Tensor] = []
        for _ in range(len(inputs)):
            state = self._step(state, terms)
            outputs.append(state)
        return torch.stack(outputs), state

    def _step(self, w: Tensor, terms: "_Terms") -> Tensor:
        """One step of the Runge-Kutta method on E^{-t} w, where E = exp(-ν k² dt/2) takes w over half a step.

            a = E (w + dt/2 N(w)),  b = E w + dt/2 N(a),  c = E (E w + dt N(b))               (3)
            w⁺ = (E (a + 2 b - E w) + c) / 3 + dt/6 N(c)                                      (4)

        (4) is the usual weighted mean of N(w), N(a), N(b), N(c), written in the stages.
        """
        half, dt = terms.half, self.dt
        q = half * w
        a = half * torch.add(w, terms.rate(w), alpha=dt / 2)
        b = torch.add(q, terms.rate(a), alpha=dt / 2)
        c = half * torch.add(q, terms.rate(b), alpha=dt)
        mixed = half * torch.add(a - q, b, alpha=2) + c
        return torch.add(mixed / 3, terms.rate(c), alpha=dt / 6)

    def _half_force(self) -> Tensor:
        """Half of f's spectrum: the entries n²/2 (a_m - i b_m) at k_m; those at -k_m are their conjugates."""
        n = self.size
        values = torch.view_as_complex(self.coefficients).conj() * (n * n / 2)
        return values.new_zeros(n * n).index_put((self.places,), values).view(n, n)

    def _constants(self) -> None:
        """What depends on the grid alone, as buffers; complex ones as pairs, which survive the module's conversions."""
        n, dtype = self.size, self.log_viscosity.dtype
        k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
        kx, ky = torch.meshgrid(k, k, indexing="ij")
        square = kx**2 + ky**2
        kept = (kx.abs() < n / 3) & (ky.abs() < n / 3) & (square > 0)
        mean = torch.zeros(n, n, 2, dtype=torch.float64)
        mean[0, 0] = n * n * torch.tensor(self.mean, dtype=torch.float64)
        far = -torch.arange(n) % n
        places = torch.tensor(self.modes, dtype=torch.long).view(-1, 2) % n
        self.square: Tensor
        self.kept: Tensor
        self.velocity: Tensor
        self.mean_velocity: Tensor
        self.products: Tensor
        self.opposite: Tensor
        self.places: Tensor
        for name, value in {
            "square": square.to(dtype),
            "kept": kept.to(dtype),
            "velocity": torch.view_as_real((kx + 1j * ky) * kept / square.clamp(min=1)).to(dtype),
            "mean_velocity": mean.to(dtype),
            "products": torch.view_as_real((1j * (ky**2 - kx**2) / 2 - kx * ky) * kept / 2).to(dtype),
            "opposite": (far[:, None] * n + far).flatten(),
            "places": places[:, 0] * n + places[:, 1],
        }.items():
            self.register_buffer(name, value.to(self.log_viscosity.device), persistent=False)

    def _check(self, inputs: Tensor, state: Tensor) -> None:
        if not isinstance(inputs, Tensor) or inputs.dim() == 0 or len(inputs) == 0:
            raise ValueError(
                "Flow: inputs count the steps: give a tensor (T, ...) with T >= 1, such as torch.zeros(T)."
            )
        wanted = f"a spectrum (..., {self.size}, {self.size}), as flow.spectrum(vorticity) makes it"
        if not isinstance(state, Tensor):
            raise TypeError(f"Flow: the state must be {wanted}, not {type(state).__name__}.")
        if not state.is_complex():
            raise TypeError(f"Flow: the state must be {wanted}, not of {state.dtype}.")
        if tuple(state.shape[-2:]) != (self.size, self.size):
            raise ValueError(f"Flow: the state must be {wanted}, not {tuple(state.shape)}.")
        if state.real.dtype != self.log_viscosity.dtype:
            raise TypeError(
                f"Flow: a flow of {self.log_viscosity.dtype} can't start from a state of {state.dtype}: "
                f"convert one, e.g. by flow.to({state.real.dtype})."
            )

    def extra_repr(self) -> str:
        """What the module's repr shows."""
        return f"{self.size}, viscosity={self.viscosity.item():.4g}, modes={self.modes}, dt={self.dt}, mean={self.mean}"


class _Terms(NamedTuple):
    """What the steps of a call share.

    With the complex velocity z = u_x + i u_y, z² holds both products that the equation needs. half: E of (3). velocity:
    w's spectrum times this is z's. mean: the same for ū. products: P of `rate`. force: `_half_force`. opposite: for
    each k of a flattened spectrum, where -k is.
    """

    half: Tensor
    velocity: Tensor
    mean: Tensor
    products: Tensor
    force: Tensor
    opposite: Tensor

    def rate(self, w: Tensor) -> Tensor:
        """N(w) = -(ū + u)·∇w + f, with u·∇w = (∂xx - ∂yy)(u_x u_y) - ∂xy(u_x² - u_y²) for ∇·u = 0.

        So -u·∇w is the real part of a field of spectrum 2 P Q, Q that of z², P = -k_x k_y/2 - i (k_x² - k_y²)/4; of a
        field of spectrum h it is (h(k) + h*(-k))/2. The force joins as its half.
        """
        z = ifft2(torch.addcmul(self.mean, self.velocity, w))
        h = torch.addcmul(self.force, self.products, fft2(z * z))
        return h + h.flatten(-2).index_select(-1, self.opposite).view_as(h).conj()


def _checked_modes(modes: Sequence[tuple[int, int]], size: int) -> tuple[tuple[int, int], ...]:
    found: set[tuple[int, int]] = set()
    for mode in modes:
        if len(mode) != 2 or any(isinstance(k, bool) or not isinstance(k, int) for k in mode):
            raise ValueError(f"Flow(modes=...): {mode!r} isn't a pair of whole numbers (k_x, k_y).")
        kx, ky = mode
        if (kx, ky) == (0, 0) or max(abs(kx), abs(ky)) >= size / 3:
            raise ValueError(
                f"Flow(modes=...): {size} points per side can't represent {mode}: both components must lie "
                f"below {size}/3, and not both be 0."
            )
        if (kx, ky) in found or (-kx, -ky) in found:
            raise ValueError(f"Flow(modes=...): {mode} is given twice (its opposite is the same wave): keep one.")
        found.add((kx, ky))
    return tuple((kx, ky) for kx, ky in modes)
