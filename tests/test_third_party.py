"""Modules of other libraries, which keep their state in themselves: `explicit_state` against a loop that calls them."""

import copy
import importlib
import warnings

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import square

T, B = 20, 3
NEURONS = {
    "Leaky": {"beta": 0.8, "learn_beta": True},
    "Synaptic": {"alpha": 0.7, "beta": 0.8},
    "RLeaky": {"beta": 0.8, "all_to_all": False},
    "Lapicque": {"beta": 0.8, "threshold": 0.05},
    "Alpha": {"alpha": 0.9, "beta": 0.8},
}
BUDGETS = {"stored": None, "checkpoints": bptt.Checkpoints(2, 3)}


def library(name):
    """The module of that name, or a skip that says how to get it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{error}: pip install 'bptt[third-party]'")


def net(neuron):
    return nn.Sequential(nn.Linear(4, 6), neuron, nn.Linear(6, 2))


def check(step, memory, names):
    """The engine's gradient is that of the loop, and the state has these names."""
    xs, ys = torch.rand(T, B, 4) * 2, torch.rand(T, B, 2)
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
