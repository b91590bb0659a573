"""Vanishing and exploding gradients, and the cure, for a range of spectral radii of the recurrent weights.

    h_t = f(W h_{t-1} + x_t),  o_t = v · h_t,  f the identity or tanh

W starts as a random orthogonal matrix times a radius of 0.5 to 1.5. For each f, length and radius: a cotangent's growth
rate and regime, the gradient's norm, and the loss after 30 updates without and with gradient clipping. Below 1 credit
fades; above 1 the identity explodes and only clipping trains it; tanh saturates. `--plot FILE` draws the norms.
"""

import argparse
import math

import torch
from torch import Tensor, nn

import bptt

SIZE, BATCH, UPDATES, RATE = 16, 8, 30, 0.1
RADII, LENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5), (10, 20, 40)
LOSS = bptt.per_step(nn.MSELoss())
FUNCTIONS = {"identity": lambda a: a, "tanh": torch.tanh}


class Step(nn.Module):
    def __init__(self, radius: float, function: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.W = nn.Parameter(radius * torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64)).Q)
        self.v = nn.Parameter(torch.randn(SIZE, dtype=torch.float64) / SIZE**0.5)
        self.function = FUNCTIONS[function]

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.function(h @ self.W.T + x)
        return h @ self.v, h


def trained(model: nn.Module, chunk: tuple[Tensor, Tensor], h0: Tensor, clip: float) -> float:
    """The loss at the last of the updates."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(UPDATES):
        try:
            update = bptt.backward(model, LOSS, chunk, h0)
        except bptt.NonFiniteLossError:
            return math.inf
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return update.mean_loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--plot", metavar="FILE", help="save the gradient norms as PNG; needs matplotlib")
    file = parser.parse_known_args()[0].plot
    norms: dict[tuple[str, int], list[float]] = {}
    h0 = torch.zeros(BATCH, SIZE, dtype=torch.float64)
    print("f          T  radius  nats/step  regime      gradient   loss after: plain   clipped")
    for function in FUNCTIONS:
        for steps in LENGTHS:
            torch.manual_seed(1)
            chunk = (torch.randn(steps, BATCH, SIZE).double() / SIZE**0.5, torch.randn(steps, BATCH).double())
            for radius in RADII:
                models = [bptt.scan(Step(radius, function)) for _ in range(2)]
                found = bptt.diagnose(models[0], LOSS, chunk, h0, state_batch_dim=0, max_lag=1, exponents=1, discard=0)
                norms.setdefault((function, steps), []).append(found.gradient_norm / steps)
                plain, clipped = (trained(m, chunk, h0, c) for m, c in zip(models, (math.inf, 1.0), strict=True))
                row = f"{function:8} {steps:4} {radius:7.2f} {found.growth_rate:10.3f}  {found.regime:10}"
                print(row + f"{norms[function, steps][-1]:10.1e} {plain:19.2g} {clipped:9.2g}")
    if file:
        from matplotlib.figure import Figure

        axes = (figure := Figure()).add_subplot(xlabel="spectral radius", ylabel="gradient norm", yscale="log")
        for (function, steps), values in norms.items():
            axes.plot(RADII, values, "o-" if function == "tanh" else "s--", label=f"{function}, T = {steps}")
        axes.legend()
        figure.savefig(file)


if __name__ == "__main__":
    main()
