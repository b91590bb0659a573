"""A hand-written detach loop and its replacement: the same updates, so the same parameters.

Task: predict the next value of a noisy wave from one long stream, in windows of 20 steps.
"""

import torch
from torch import Tensor, nn

import bptt

WINDOW, STEPS, BATCH, HIDDEN = 20, 1_970, 8, 24  # the last window is short: 10 steps


class Net(nn.Module):
    """A recurrence: (inputs, state) -> (outputs, state), time first."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, HIDDEN)
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.gru(inputs, state)
        return self.readout(outputs), state


def by_hand(net: Net, xs: Tensor, ys: Tensor) -> list[float]:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    state = torch.zeros(1, BATCH, HIDDEN)
    losses = []
    for a in range(0, len(xs), WINDOW):
        outputs, state = net(xs[a : a + WINDOW], state)
        state = state.detach()  # without it: "backward through the graph a second time"
        by_step = (outputs - ys[a : a + WINDOW]).square()
        loss = by_step.mean(dim=(1, 2)).sum() / WINDOW  # the steps of a short last window weigh no more than others
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(by_step.mean().item())
    return losses


def by_unroll(net: Net, xs: Tensor, ys: Tensor) -> list[float]:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    state = torch.zeros(1, BATCH, HIDDEN)
    loss = bptt.per_step(nn.MSELoss())
    losses = []
    for update in bptt.unroll(net, loss, [(xs, ys)], state, strategy=bptt.TruncatedBPTT(k1=WINDOW)):
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(update.mean_loss.item())
    return losses


def main() -> None:
    torch.manual_seed(0)
    time = torch.arange(STEPS + 1)[:, None, None] + 10 * torch.rand(1, BATCH, 1)
    wave = torch.sin(0.2 * time) * torch.sin(0.031 * time) + 0.05 * torch.randn(STEPS + 1, BATCH, 1)
    results = {}
    for loop in (by_hand, by_unroll):
        torch.manual_seed(1)
        net = Net()
        losses = loop(net, wave[:-1], wave[1:])
        results[loop.__name__] = net.state_dict()
        print(f"{loop.__name__:10} {len(losses)} updates, squared error {losses[0]:.4f} -> {losses[-1]:.4f}")
    torch.testing.assert_close(results["by_unroll"], results["by_hand"], rtol=1e-4, atol=1e-5)
    print("Equal parameters after training.")


if __name__ == "__main__":
    main()
