"""The textbook's recurrent network, with its matrices by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from bptt import _errors
from bptt.nn import init

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda a: a,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


class SimpleRNN(nn.Module):
    """The network of the textbook: input U, recurrence W, output V.

        a_t = U x_t + W h_{t-1} + b                                                       (1)
        h_t = f(a_t)                                                                      (2)
        o_t = V h_t + c                                                                   (3)

    Unlike `torch.nn.RNN` it contains an output layer, and its activation may be the identity, so that its gradients
    are those of `bptt.equations`, symbol by symbol.

    input_size, hidden_size, output_size: the lengths I, H, O of x_t, h_t and o_t, >= 1.
    nonlinearity: f: "identity", "tanh", "relu" or "sigmoid".
    bias: whether there are b and c. device, dtype: of the parameters, as in torch.nn.
    generator: the source of randomness of the first values; None is torch's default one.

    Parameters: U (H, I), W (H, H), V (O, H); with bias b (H,) and c (O,), else None.
    Call: (inputs, state=None) -> (outputs, state): inputs (T, B, I) or (T, I), outputs (T, B, O) or (T, O), state
    (B, H) or (H,), the batch rows on axis 0; None starts from zeros.

    Raises ValueError for sizes below 1, an unknown nonlinearity, inputs or a state that don't fit.
    Cost: T (H H + H I + O H) multiplications per row, the products with U and V each done for all steps at once.

    >>> import bptt.nn, torch
    >>> model = bptt.nn.SimpleRNN(2, 3, 1, nonlinearity="tanh", bias=True)
    >>> outputs, state = model(torch.zeros(7, 5, 2))
    >>> outputs.shape, state.shape
    (torch.Size([7, 5, 1]), torch.Size([5, 3]))

    Source: Elman 1990, "Finding structure in time", Cognitive Science 14(2); for initial values see `reset_parameters`.
    """

    state_batch_dim = 0
    """The axis of the batch rows in the state."""
    batch_first = False
    """Time is axis 0."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        nonlinearity: str = "identity",
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        for name, value in sizes.items():
            _errors.check_count(value, f"SimpleRNN({name}={value!r}): {name}")
        if nonlinearity not in NONLINEARITIES:
            known = ", ".join(f'"{name}"' for name in NONLINEARITIES)
            raise ValueError(f"SimpleRNN(nonlinearity={nonlinearity!r}) is unknown: use one of {known}.")
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.nonlinearity, self.bias = nonlinearity, bias

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.U = empty(hidden_size, input_size)
        self.W = empty(hidden_size, hidden_size)
        self.V = empty(output_size, hidden_size)
        self.b = empty(hidden_size) if bias else None
        self.c = empty(output_size) if bias else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the parameters afresh, so that no step's Jacobian stretches a vector, and each keeps some.

            U, V ~ Glorot;  b = c = 0;  W = 1 for relu (IRNN), else W = Q / max f', Q orthogonal  (1)

        With D_t = diag f'(a_t), every |∂h_t/∂h_{t-1}| = |D_t W| <= 1, and it keeps all lengths where f' is largest:
        everywhere for the identity, at a = 0 for tanh, at a > 0 for relu. For the sigmoid max f' = 1/4; with bias,
        b = -½ W 1 instead of 0 makes h = ½, a = 0, where f' is largest, a fixed point; without bias f' is smaller at
        most states and gradients vanish.

        generator: the source of randomness; None is torch's default one.
        Source: Le, Jaitly & Hinton 2015 for relu, whose U is Gaussian with deviation 0.001, here Glorot with gain √2.
        """
        init.glorot_(self.U, 2**0.5 if self.nonlinearity == "relu" else 1.0, generator=generator)
        init.glorot_(self.V, generator=generator)
        if self.nonlinearity == "relu":
            init.identity_(self.W)
        else:
            init.orthogonal_(self.W, 4.0 if self.nonlinearity == "sigmoid" else 1.0, generator=generator)
        with torch.no_grad():
            if self.b is not None:
                self.b.copy_(-0.5 * self.W.sum(1)) if self.nonlinearity == "sigmoid" else self.b.zero_()
            if self.c is not None:
                self.c.zero_()

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Equations (1) to (3) over inputs (T, B, I) or (T, I), from state (B, H) or (H,): (outputs, last state)."""
        self._check(inputs, state)
        f = NONLINEARITIES[self.nonlinearity]
        h = self.zero_state(inputs) if state is None else state
        states: list[Tensor] = []
        for driven in functional.linear(inputs, self.U, self.b).unbind(0):
            h = f(driven + functional.linear(h, self.W))
            states.append(h)
        return functional.linear(torch.stack(states), self.V, self.c), h

    def zero_state(self, inputs: Tensor) -> Tensor:
        """The zeros to start from, (B, H) for inputs (T, B, I), (H,) for inputs (T, I), in their dtype."""
        return inputs.new_zeros(*inputs.shape[1:-1], self.hidden_size)

    def extra_repr(self) -> str:
        """What the module's repr shows."""
        sizes = f"{self.input_size}, {self.hidden_size}, {self.output_size}"
        return f"{sizes}, nonlinearity={self.nonlinearity!r}" + (", bias=True" if self.bias else "")

    def _check(self, inputs: Tensor, state: Tensor | None) -> None:
        if inputs.dim() not in (2, 3) or inputs.shape[-1] != self.input_size or inputs.shape[0] == 0:
            raise ValueError(
                f"SimpleRNN: inputs have shape {tuple(inputs.shape)}, not (T, B, {self.input_size}) or "
                f"(T, {self.input_size}) with T >= 1."
            )
        fits = (*inputs.shape[1:-1], self.hidden_size)
        if state is not None and tuple(state.shape) != fits:
            raise ValueError(
                f"SimpleRNN: the state has shape {tuple(state.shape)}; inputs {tuple(inputs.shape)} need {fits}."
            )
