"""Recurrent modules of other libraries, as their documentation shows them, against plain autograd over the windows."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.third_party import LOSS, B, Case, T, check_run, library, runs, singles

# Continuous time --------------------------------------------------------------------------------------------------


@runs
@pytest.mark.parametrize("name", ["LTC", "LTC-wired", "CfC", "CfC-mixed"])
def test_ncps(name, run):
    cells = library("ncps.torch")
    wirings = library("ncps.wirings")

    def make():
        data = torch.randn(B, T, 4), torch.randn(B, T, 2)
        if name == "LTC":
            return Case(cells.LTC(4, 2), *data, time_dim=1)
        if name == "LTC-wired":
            return Case(cells.LTC(4, wirings.AutoNCP(8, 2)), *data, time_dim=1)
        if name == "CfC":
            return Case(cells.CfC(4, 5, proj_size=2), *data, time_dim=1)
        mixed = cells.CfC(4, 5, proj_size=2, mixed_memory=True, batch_first=False)
        return Case(mixed, *(leaf.transpose(0, 1) for leaf in data))

    check_run(make, run)


@runs
def test_irregular_times_of_ncps(run):
    cells = library("ncps.torch")

    class Irregular(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = cells.CfC(4, 5, proj_size=2, batch_first=False)

        def forward(self, inputs, state=None):
            return self.rnn(inputs["x"], state, inputs["dt"])

    def make():
        return Case(Irregular(), {"x": torch.randn(T, B, 4), "dt": torch.rand(T, 1)}, torch.randn(T, B, 2))

    check_run(make, run)


@runs
@pytest.mark.parametrize("solver", ["odeint", "odeint_adjoint"])
def test_ode_rnn_with_torchdiffeq(solver, run):
    odeint = getattr(library("torchdiffeq"), solver)

    class Field(nn.Sequential):
        def forward(self, _, h):
            return super().forward(h)

    class ODERNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = Field(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5))
            self.cell, self.readout = nn.GRUCell(4, 5), nn.Linear(5, 2)

        def forward(self, inputs, state=None):
            x, dt = inputs
            h = x.new_zeros(len(x), 5) if state is None else state
            h = odeint(self.field, h, torch.stack([torch.zeros_like(dt), dt]), rtol=1e-4, atol=1e-4)[-1]
            h = self.cell(x, h)
            return self.readout(h), h

    def make():
        return Case(bptt.scan(ODERNN()), (torch.randn(T, B, 4), torch.rand(T) + 0.1), torch.randn(T, B, 2))

    check_run(make, run)


# Complex states ---------------------------------------------------------------------------------------------------


@runs
def test_linear_recurrent_unit(run):
    neural_ssm = library("neural_ssm")

    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.lru = neural_ssm.LRU(4, 2, 6)

        def forward(self, x, state=None):
            y, states = self.lru(x, state=state, mode="scan", detach_state=False)
            return y, states[:, -1]

    check_run(lambda: Case(Unit(), torch.randn(B, T, 4), torch.randn(B, T, 2), time_dim=1), run)


@runs
def test_linear_recurrent_unit_that_keeps_its_state(run):
    neural_ssm = library("neural_ssm")

    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.lru = neural_ssm.LRU(4, 2, 6)

        def forward(self, x):
            return self.lru(x, reset_state=False, detach_state=False)[0]

    check_run(lambda: Case(bptt.explicit_state(Unit()), torch.randn(B, T, 4), torch.randn(B, T, 2), time_dim=1), run)


@singles  # its parameters are complex64
def test_simplified_state_space_layer(run):
    s5 = library("s5")

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.readout = s5.S5Block(4, 6, bidir=False), nn.Linear(4, 2)

        def forward(self, x, state=None):
            y, state = self.block(x, state, return_state=True)
            return self.readout(y), state

    check_run(lambda: Case(Layer(), torch.randn(B, T, 4), torch.randn(B, T, 2), time_dim=1), run, 1e-4)


# Memory tokens ----------------------------------------------------------------------------------------------------


@runs
@pytest.mark.parametrize("xl", [False, True], ids=["memories", "xl"])
def test_recurrent_memory_transformer(xl, run):
    package = library("recurrent_memory_transformer_pytorch")

    class Segments(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = package.RecurrentMemoryTransformer(
                num_tokens=7,
                num_memory_tokens=2,
                dim=8,
                depth=2,
                causal=True,
                dim_head=4,
                heads=2,
                seq_len=5,
                use_xl_memories=xl,
                xl_mem_len=3,
            )

        def forward(self, tokens, state=None):
            memories, earlier = (None, None) if state is None else state
            logits, memories, earlier = self.transformer(tokens, memories, xl_memories=earlier)
            return logits, (memories, earlier)

    def loss(logits, targets):
        return nn.functional.cross_entropy(logits.movedim(-1, 1), targets, reduction="none")

    def make():
        tokens = torch.randint(7, (T, B, 6))
        return Case(bptt.scan(Segments()), tokens[..., :-1], tokens[..., 1:], loss=loss)

    check_run(make, run)


# TensorDicts ------------------------------------------------------------------------------------------------------


@runs
@pytest.mark.parametrize("recurrent", [False, True], ids=["steps", "sequences"])
def test_lstm_of_torchrl(recurrent, run):
    modules = library("torchrl.modules")
    TensorDict = library("tensordict").TensorDict

    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = modules.LSTMModule(4, 5, in_key="x", out_key="y", default_recurrent_mode=recurrent)
            self.readout = nn.Linear(5, 2)

        def forward(self, x, state=None):
            batch = x.shape[:-1]
            data = TensorDict({"x": x, "is_init": torch.zeros(*batch, 1, dtype=torch.bool)}, batch)
            if state is not None:
                data.update(state.unsqueeze(1).expand(*batch) if recurrent else state)
            data = self.lstm(data)
            after = data["next"]
            return self.readout(data["y"]), after[:, -1] if recurrent else after

    def make():
        if recurrent:
            return Case(Policy(), torch.randn(B, T, 4), torch.randn(B, T, 2), time_dim=1)
        return Case(bptt.scan(Policy()), torch.randn(T, B, 4), torch.randn(T, B, 2))

    check_run(make, run)


@runs
@pytest.mark.parametrize("begin", ["none", "zeros"])
def test_inputs_and_states_in_a_tensordict(begin, run):
    """The module reads from and writes to the very TensorDict that it is given, as all of its kind do."""
    modules = library("torchrl.modules")
    TensorDict = library("tensordict").TensorDict

    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = modules.LSTMModule(4, 5, in_key="x", out_key="y")

        def forward(self, data, state=None):
            data = self.lstm(data if state is None else data.update(state))
            return data["y"], data["next"]

    def make():
        data = TensorDict({"x": torch.randn(T, B, 4), "is_init": torch.zeros(T, B, 1, dtype=torch.bool)}, [T, B])
        zeros = {f"recurrent_state_{name}": torch.zeros(B, 1, 5) for name in "hc"}
        state = None if begin == "none" else TensorDict(zeros, [B])
        return Case(bptt.scan(Policy()), data, torch.randn(T, B, 5), state=state)

    check_run(make, run)


def test_single_rows_of_a_tensordict_start_anew(double):
    modules = library("torchrl.modules")
    TensorDict = library("tensordict").TensorDict
    lstm = modules.LSTMModule(4, 5, in_key="x", out_key="y")
    starts = torch.rand(T, B) < 0.2

    def step(data, state):
        data = lstm(data.update(state))
        return data["y"], data["next"]

    zeros = TensorDict({f"recurrent_state_{name}": torch.zeros(B, 1, 5) for name in "hc"}, [B])
    x, y = torch.randn(T, B, 4), torch.randn(T, B, 5)
    found = []
    for here, there in ((starts[..., None], None), (torch.zeros_like(starts)[..., None], starts)):
        data = TensorDict({"x": x, "is_init": here}, [T, B])  # by the module itself, or by the library
        chunk = bptt.Chunk(data, y, there)
        update = bptt.backward(bptt.scan(step), LOSS, chunk, zeros, initial_state=zeros, state_batch_dim=0)
        assert isinstance(update.state, TensorDict)
        found.append(oracle.gradients(lstm.parameters()))
    oracle.assert_close(*found, 1e-9)
