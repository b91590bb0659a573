"""Neurons of other libraries: under `explicit_state` where they keep their membranes, and as they are where not."""

import copy

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import square
from support.third_party import B, Case, T, check_run, library, runs, singles

NEURONS = {
    "Leaky": {"beta": 0.8, "learn_beta": True},
    "Synaptic": {"alpha": 0.7, "beta": 0.8},
    "RLeaky": {"beta": 0.8, "all_to_all": False},
    "Lapicque": {"beta": 0.8, "threshold": 0.05},
    "Alpha": {"alpha": 0.9, "beta": 0.8},
}
BUDGETS = {"stored": None, "checkpoints": bptt.Checkpoints(2, 3)}


def net(neuron):
    return nn.Sequential(nn.Linear(4, 6), neuron, nn.Linear(6, 2))


def check(step, memory, names):
    """The engine's gradient is that of the loop, and the state has these names."""
    xs, ys = torch.rand(T, B, 4) * 4, torch.rand(T, B, 2)
    plain = copy.deepcopy(step)
    square(torch.stack([plain(x) for x in xs]), ys).flatten(1).mean(1).sum().backward()
    want = [p.grad for p in plain.parameters()]
    assert all(g.abs().max() > 0 for g in want)
    model = bptt.scan(bptt.explicit_state(step))
    update = bptt.backward(model, square, (xs, ys), reduction="sum", memory=memory)
    oracle.assert_close([p.grad for p in step.parameters()], want, 1e-5)
    assert names <= set(update.state)


@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_of_snntorch(name, memory):
    cls = getattr(library("snntorch"), name)
    check(net(cls(init_hidden=True, **NEURONS[name])), memory, {"1.mem"})


@pytest.mark.parametrize("memory", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("name", ["LIFNode", "IFNode", "ParametricLIFNode"])
def test_neurons_of_spikingjelly(name, memory):
    cls = getattr(library("spikingjelly.activation_based.neuron"), name)
    check(net(cls()), memory, {"1._memories['v']"})


@singles  # the thresholds' module casts its results to single precision
def test_neurons_of_snntorch_that_return_their_membrane(run):
    snntorch = library("snntorch")

    class Spiking(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 2)
            self.lif1, self.lif2 = snntorch.Leaky(beta=0.8, learn_beta=True), snntorch.Synaptic(alpha=0.7, beta=0.8)

        def forward(self, x, state=None):
            if state is None:
                state = self.lif1.reset_mem(), *self.lif2.reset_mem()
            mem1, syn2, mem2 = state
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            _, syn2, mem2 = self.lif2(self.fc2(spikes), syn2, mem2)
            return mem2, (mem1, syn2, mem2)

    def make():
        return Case(bptt.scan(Spiking()), torch.rand(T, B, 4) * 2, torch.rand(T, B, 2))

    check_run(make, run, 1e-4)


@runs
@pytest.mark.parametrize("whole", [False, True], ids=["cells", "sequences"])
def test_neurons_of_norse(whole, run):
    norse = library("norse.torch")

    def make():
        if whole:
            model = norse.SequentialState(
                norse.Lift(nn.Linear(4, 6)), norse.LIF(), norse.Lift(nn.Linear(6, 2)), norse.LI()
            )
        else:
            cells = norse.LIFRecurrentCell(6, 6), norse.LICell()
            model = bptt.scan(norse.SequentialState(nn.Linear(4, 6), cells[0], nn.Linear(6, 2), cells[1]))
        return Case(model, torch.rand(T, B, 4) * 40, torch.rand(T, B, 2))

    check_run(make, run)
