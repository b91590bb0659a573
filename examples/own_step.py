"""A step function of your own, with a dict as its state: find the two decay rates behind a signal.

    fast_t = a fast_{t-1} + x_t,    slow_t = b slow_{t-1} + x_t,    y_t = fast_t + slow_t

The data were made with a = 0.5 and b = 0.95. `bptt.scan` lifts the step to sequences; each update sums the losses of 10
steps and looks back 60 steps, with a step of the optimiser in between.
"""

import torch
from torch import Tensor, nn

import bptt

State = dict[str, Tensor]


class TwoLeaks(nn.Module):
    """One time step. The state may be any pytree of tensors; integer leaves are carried along without gradient."""

    def __init__(self, fast: float, slow: float) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([fast, slow]).logit())

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        a, b = self.rates.sigmoid()
        fast, slow = a * state["fast"] + x, b * state["slow"] + x
        return fast + slow, {"fast": fast, "slow": slow, "steps": state["steps"] + 1}


def zeros(batch: int) -> State:
    return {"fast": torch.zeros(batch), "slow": torch.zeros(batch), "steps": torch.tensor(0)}


def main() -> None:
    torch.manual_seed(0)
    steps, batch = 3_000, 16
    xs = torch.randn(steps, batch)
    with torch.no_grad():
        ys, _ = bptt.scan(TwoLeaks(0.5, 0.95))(xs, zeros(batch))

    step = TwoLeaks(0.3, 0.6)
    model = bptt.scan(step)  # a module too: its parameters are those of the step
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    loss = bptt.per_step(nn.MSELoss())
    strategy = bptt.TruncatedBPTT(k1=10, k2=60)
    for number, update in enumerate(bptt.unroll(model, loss, [(xs, ys)], zeros(batch), strategy=strategy)):
        optimizer.step()
        optimizer.zero_grad()
        if number % 75 == 0 or update.t1 == steps:
            a, b = step.rates.sigmoid().tolist()
            seen = update.state["steps"].item()
            print(f"after {seen:4} steps: a = {a:.3f}, b = {b:.3f}, squared error {update.mean_loss.item():.2e}")
    assert abs(a - 0.5) < 0.05, a
    assert abs(b - 0.95) < 0.01, b
    print("The data were made with a = 0.5 and b = 0.95.")


if __name__ == "__main__":
    main()
