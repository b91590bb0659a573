"""The exact gradient of a sequence that is longer than memory would allow: the same number, replayed in pieces.

First on a length where everything can be stored, in float64: the gradient under a budget is that of plain autograd.
Then on a sequence a hundred times as long, in float32, under the same budget.
"""

import torch
from torch import Tensor, nn

import bptt

BUDGET = "256KiB"
SHORT, LONG = 1_000, 100_000


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """By step, (T, B): the first hidden unit has to follow the target."""
    return (outputs[..., 0] - targets).square()


def task(steps: int) -> tuple[Tensor, Tensor]:
    xs = torch.randn(steps, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return xs, torch.tanh(xs[..., 0].cumsum(0) / 10)


def gradient(model: nn.Module) -> Tensor:
    taken = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return taken


def main() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(4, 12, dtype=torch.float64)

    xs, ys = task(SHORT)
    outputs, _ = model(xs)
    loss(outputs, ys).mean().backward()
    exact = gradient(model)
    stored = bptt.backward(model, loss, (xs, ys))
    torch.testing.assert_close(gradient(model), exact, rtol=1e-10, atol=1e-14)
    small = bptt.backward(model, loss, (xs, ys), memory=BUDGET)
    difference = ((gradient(model) - exact).norm() / exact.norm()).item()
    assert difference < 1e-12, difference
    print(f"T = {SHORT:,}: stored {stored.memory_bytes:,} bytes, under a budget {small.memory_bytes:,} bytes;")
    print(f"    gradients apart by {difference:.0e}, {small.forward_steps / SHORT:.1f} forward steps per step.")

    model = model.float()
    xs, ys = (values.float() for values in task(LONG))
    stored = bptt.backward(model, loss, (xs[:SHORT], ys[:SHORT]))
    full = stored.memory_bytes / SHORT * LONG
    model.zero_grad()
    update = bptt.backward(model, loss, (xs, ys), memory=BUDGET)
    print(f"T = {LONG:,}: would store {full:,.0f} bytes, under a budget {update.memory_bytes:,} bytes;")
    print(f"    |gradient| = {gradient(model).norm().item():.4f}, mean loss {update.mean_loss.item():.4f},", end=" ")
    print(f"{update.forward_steps / LONG:.1f} forward steps per step.")


if __name__ == "__main__":
    main()
