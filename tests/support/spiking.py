"""A spiking net that keeps its membranes to itself, and the same net with its state written out."""

import torch
from torch import nn

F64 = torch.float64
IN, HIDDEN, OUT = 4, 6, 2


class Surrogate(torch.autograd.Function):
    """A spike, with the slope of a smooth function in its place."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + 4 * x.abs()).square()


class LIF(nn.Module):
    """Leaky integrate-and-fire, the membrane in an attribute: None before the first call."""

    def __init__(self):
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.8, dtype=F64))
        self.mem = None

    def forward(self, current):
        mem = current if self.mem is None else self.decay * self.mem + current
        spikes = Surrogate.apply(mem - 1)
        self.mem = mem - spikes.detach()
        return spikes


class Buffered(LIF):
    """The membrane in a buffer, empty before the first call."""

    def __init__(self):
        super().__init__()
        del self.mem
        self.register_buffer("mem", torch.zeros(0, dtype=F64), persistent=False)

    def forward(self, current):
        if self.mem.shape != current.shape:
            self.mem = torch.zeros_like(current)
        return super().forward(current)


class InPlace(Buffered):
    """The same, written to."""

    def forward(self, current):
        if self.mem.shape != current.shape:
            self.mem = torch.zeros_like(current)
        mem = self.decay * self.mem.clone() + current
        spikes = Surrogate.apply(mem - 1)
        self.mem.copy_(mem - spikes.detach())
        return spikes


class Spiking(nn.Module):
    """Two layers and a readout, for one step (B, IN)."""

    def __init__(self, neuron=LIF):
        super().__init__()
        self.into, self.between = nn.Linear(IN, HIDDEN, dtype=F64), nn.Linear(HIDDEN, HIDDEN, dtype=F64)
        self.lif1, self.lif2 = neuron(), neuron()
        self.readout = nn.Linear(HIDDEN, OUT, dtype=F64)
        with torch.no_grad():
            self.into.weight *= 3
            self.between.weight *= 3

    def forward(self, x):
        return self.readout(self.lif2(self.between(self.lif1(self.into(x)))))


class Written(nn.Module):
    """The same net with its state as an argument; it shares the parameters."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, state):
        net, mems = self.net, []
        spikes = x
        for linear, lif, mem in ((net.into, net.lif1, state[0]), (net.between, net.lif2, state[1])):
            mem = lif.decay * mem + linear(spikes)
            spikes = Surrogate.apply(mem - 1)
            mems.append(mem - spikes.detach())
        return net.readout(spikes), tuple(mems)
