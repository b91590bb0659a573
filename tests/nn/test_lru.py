"""The linear recurrent unit: its recursion, and RTRL of one layer with as much as it has parameters."""

import pytest
import torch
from torch import nn

import bptt
import bptt.nn
from support.refusals import refused

LOSS = bptt.per_step(nn.MSELoss())


def test_the_recursion_written_out(double):
    model, x = bptt.nn.LRU(3, 4, 2), torch.randn(7, 2, 3)
    turn = torch.exp(-model.nu.exp() + 1j * model.theta.exp())
    into = torch.complex(model.B_re, model.B_im) * model.gamma_log.exp()[:, None]
    out, h, outputs = torch.complex(model.C_re, model.C_im), torch.zeros(2, 4, dtype=torch.complex128), []
    for x_t in x:
        h = turn * h + x_t.to(into.dtype) @ into.T
        outputs.append((h @ out.T).real + x_t @ model.D.T)
    found, state = model(x)
    torch.testing.assert_close(found, torch.stack(outputs))
    torch.testing.assert_close(state, h[None])
    alone, last = model(x[:, 0])
    torch.testing.assert_close(alone, found[:, 0])
    torch.testing.assert_close(last, state[:, 0])


def test_first_values_lie_in_the_ring():
    turn = bptt.nn.LRU(3, 500, 2, r_min=0.5, r_max=0.8, max_phase=0.3).eigenvalues
    assert 0.5 <= turn.abs().min() < 0.53
    assert 0.77 < turn.abs().max() <= 0.8001
    assert turn.angle().min() >= 0
    assert 0.29 < turn.angle().max() <= 0.3


def gradient(model, chunk, strategy):
    model.zero_grad()
    update = bptt.backward(model, LOSS, chunk, strategy=strategy, reduction="sum")
    return torch.cat([p.grad.flatten() for p in model.parameters()]), update.memory_bytes


@pytest.mark.parametrize("strategy", [bptt.RTRL(1), bptt.RTRL(4), bptt.SnAp(1, 3), bptt.SnAp(2)], ids=str)
def test_rtrl_and_snap_are_exact(strategy, double):
    model, starts = bptt.nn.LRU(3, 4, 2), torch.zeros(11, 2, dtype=torch.bool)
    starts[5, 1] = starts[8, 0] = True
    for is_start in (None, starts):
        chunk = bptt.Chunk(torch.randn(11, 2, 3), torch.randn(11, 2, 2), is_start)
        want, _ = gradient(model, chunk, bptt.FullBPTT())
        found, _ = gradient(model, chunk, strategy)
        assert (found - want).abs().max() < 1e-12 * want.abs().max()


def test_a_thousand_steps_with_as_much_as_its_parameters(double):
    """Within 1e-10 of the full gradient; what is carried grows neither with T nor with the window."""
    model = bptt.nn.LRU(2, 8, 1)
    chunk = torch.randn(1000, 1, 2), torch.randn(1000, 1, 1)
    want, whole = gradient(model, chunk, bptt.FullBPTT())
    found, held = gradient(model, chunk, bptt.RTRL(10))
    assert (found - want).abs().max() < 1e-10 * want.abs().max()
    assert held < whole / 20
    carried = []
    for steps, k1 in ((20, 10), (60, 10), (60, 30)):
        updates = bptt.unroll(model, LOSS, [tuple(x[:steps] for x in chunk)], strategy=bptt.RTRL(k1))
        list(updates)
        carried.append(sum(x.numel() for x in updates.state_dict()["influence"]["units"].values()))
    assert carried == [2 * 8 * (3 + 2 * 2)] * 3


def test_a_stack_goes_the_general_way(double):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = bptt.nn.LRU(2, 3, 2), bptt.nn.LRU(2, 3, 1)

        def forward(self, x, state=None):
            first, second = (None, None) if state is None else state
            y, first = self.one(x, first)
            y, second = self.two(y, second)
            return y, (first, second)

    model, chunk = Stack(), (torch.randn(8, 2, 2), torch.randn(8, 2, 1))
    want, _ = gradient(model, chunk, bptt.FullBPTT())
    found, _ = gradient(model, chunk, bptt.RTRL(3))
    assert (found - want).abs().max() < 1e-12 * want.abs().max()


def test_bad_arguments():
    refused(lambda: bptt.nn.LRU(0, 2, 2), "input_size")
    refused(lambda: bptt.nn.LRU(2, 2, 2, r_min=0.9, r_max=0.5), "r_min", "ring")
    refused(lambda: bptt.nn.LRU(2, 2, 2, r_max=1.0), "r_max")
    refused(lambda: bptt.nn.LRU(2, 2, 2, max_phase=0), "max_phase")
    refused(lambda: bptt.nn.LRU(2, 2, 2)(torch.zeros(3, 4)), "(3, 4)")
    refused(lambda: bptt.nn.LRU(2, 2, 2)(torch.zeros(3, 1, 2), torch.zeros(1, 1, 2)), "complex")


@pytest.mark.deep
def test_a_hundred_thousand_steps_in_one_pass_hold_no_more_than_a_thousand():
    layer, held = bptt.nn.LRU(2, 4, 4), []
    stream = ((torch.randn(1000, 1, 2), torch.randn(1000, 1, 4)) for _ in range(100))
    optimizer = torch.optim.SGD(layer.parameters(), 1e-3)
    for update in bptt.unroll(layer, LOSS, stream, strategy=bptt.RTRL(250)):
        optimizer.step()
        optimizer.zero_grad()
        held.append(update.memory_bytes)
    assert update.t1 == 100_000
    assert held[1] == held[-1]
