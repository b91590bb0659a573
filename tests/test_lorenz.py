"""The controlled Lorenz system of examples/lorenz.py against closed forms, another writing, and plain autograd."""

import importlib.util
import math

import pytest
import torch

import bptt
from support.pages import ROOT

spec = importlib.util.spec_from_file_location("lorenz_example", ROOT / "examples" / "lorenz.py")
assert spec is not None
assert spec.loader is not None
lorenz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lorenz)
D = torch.float64


def by_hand(x, y, z, u):
    """ż in floats, as Lorenz 1963 writes it, with the push in the second equation."""
    return 10 * (y - x), x * (28 - z) - y + u, x * y - 8 / 3 * z


def midpoint(point, u, seconds, count):
    """Midpoint steps with Richardson's extrapolation over halved ones: third order, and no code of the example's."""

    def run(count):
        p, h = point, seconds / count
        for _ in range(count):
            half = [a + h / 2 * s for a, s in zip(p, by_hand(*p, u), strict=True)]
            p = [a + h * s for a, s in zip(p, by_hand(*half, u), strict=True)]
        return torch.tensor(p, dtype=D)

    return (4 * run(2 * count) - run(count)) / 3


@pytest.mark.parametrize("u", [0.0, 7.0])
def test_the_step_is_the_systems_to_fourth_order(monkeypatch, u):
    start, errors = torch.tensor([[1.0, 2.0, 30.0]], dtype=D), []
    exact = midpoint(start[0].tolist(), u, 0.4, 2_000)
    for dt in (0.01, 0.005):
        monkeypatch.setattr(lorenz, "DT", dt)
        z = start
        for _ in range(round(0.4 / dt)):
            z = lorenz.step(z, u / 20 * lorenz.PUSHED)
        errors.append((z[0] - exact).norm().item())
    assert errors[0] < 1e-3
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)


def test_the_target_is_a_fixed_point_without_cost():
    z = lorenz.TARGET[None]
    torch.testing.assert_close(lorenz.step(z, torch.zeros_like(lorenz.PUSHED)), z, rtol=0, atol=1e-12)
    losses, distances = lorenz.cost((z, torch.zeros(1, 1, dtype=D)), None)
    assert losses.item() == distances.item() == 0


def test_cost_is_the_one_written_above_it():
    losses, distances = lorenz.cost((lorenz.TARGET + torch.tensor([[3.0, 0, 4]]), torch.tensor([[0.5]], dtype=D)), None)
    assert losses.item() == pytest.approx(25 / 200 + 1e-4 * 10**2)
    assert distances.item() == pytest.approx(5)


def autograd(model, z, steps):
    """The gradient of the mean cost, summed over steps, by one graph; each policy written as two plain layers."""
    weights = [p.detach().clone().requires_grad_() for p in model.step.parameters()]
    total = torch.zeros((), dtype=D)
    for policy, rows in enumerate(z.chunk(len(weights[0]))):
        w1, b1, w2, b2 = (w[policy] for w in weights)
        for _ in range(steps):
            u = 20 * torch.tanh(torch.tanh((rows - lorenz.TARGET) / 10 @ w1 + b1) @ w2 + b2)
            slopes = [torch.zeros_like(rows)]
            for ahead in (0.0, 0.01, 0.01, 0.02):
                parts = (rows + ahead * slopes[-1]).unbind(1)
                slopes.append(torch.stack(by_hand(*parts, u[:, 0]), 1))
            rows = rows + 0.02 / 6 * (slopes[1] + 2 * slopes[2] + 2 * slopes[3] + slopes[4])
            total = total + ((rows - lorenz.TARGET).square().sum() / 200 + 1e-4 * u.square().sum()) / len(z)
    return torch.autograd.grad(total, weights)


def made(seeds=(3, 4), rows=2):
    return bptt.scan(lorenz.Controlled(seeds)), lorenz.starts([torch.Generator().manual_seed(s) for s in seeds], rows)


def test_gradient_is_plain_autograds():
    model, z = made()
    bptt.backward(model, lorenz.cost, (torch.zeros(40), None), z, reduction="sum")
    torch.testing.assert_close(
        [p.grad for p in model.parameters()], list(autograd(model, z, 40)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", ["full, gradient clipped", "full, cotangent clipped", "TBPTT(50)"])
def test_policies_side_by_side_are_policies_alone(name):
    """What the benchmark rests on where it trains five seeds in one run."""
    method = lorenz.METHODS[name]
    both = lorenz.train(method, (3, 4), passes=2, steps=60, rows=3)
    for at, seed in enumerate((3, 4)):
        alone = lorenz.train(method, (seed,), passes=2, steps=60, rows=3)
        untrained = lorenz.train(method, (seed,), passes=0)
        for p, q, r in zip(both.parameters(), alone.parameters(), untrained.parameters(), strict=True):
            assert not torch.equal(q, r)
            torch.testing.assert_close(p[at], q[0], rtol=0, atol=1e-10)  # of updates of 2.5e-3


def test_norms_are_those_of_each_policy_alone():
    model, z = made()
    found = lorenz.gradient_norms(model, z, 30)
    for at, seed in enumerate((3, 4)):
        exact = autograd(bptt.scan(lorenz.Controlled([seed])), z[2 * at : 2 * at + 2], 30)
        norm = torch.cat([g.flatten() for g in exact]).norm() / 30
        torch.testing.assert_close(found[at], norm, rtol=1e-9, atol=0)


def test_gradient_explodes_and_a_clipped_cotangents_does_not():
    model, z = made(seeds=(100,), rows=8)
    exact = [lorenz.gradient_norms(model, z, steps).item() for steps in (50, 800)]
    clipped = [lorenz.gradient_norms(model, z, steps, lorenz.BOUND).item() for steps in (50, 800)]
    assert exact[1] > 1_000 * exact[0]
    assert 0.5 < clipped[1] / clipped[0] < 2


def test_lyapunov_exponents_without_a_push_are_the_literatures():
    """0.906, 0, -14.572 for these constants; their sum is the trace, -(10 + 1 + 8/3), exactly."""
    model, z = made(seeds=(100,), rows=8)
    with torch.no_grad():
        model.step.w2.zero_()
        model.step.b2.zero_()
    found = bptt.diagnose(model, lorenz.cost, (torch.zeros(300), None), z, state_batch_dim=0, truncations=[1])
    largest, middle, least = (found.exponents.mean(0) / 0.02).tolist()
    assert found.regime == "exploding"
    assert largest == pytest.approx(0.906, abs=0.2)
    assert middle == pytest.approx(0, abs=0.2)
    assert largest + middle + least == pytest.approx(-(10 + 1 + 8 / 3), abs=0.01)


def test_a_short_training_lowers_the_cost():
    z = lorenz.starts([torch.Generator().manual_seed(1_000)], 8)
    before = lorenz.distance(bptt.scan(lorenz.Controlled([100])), z, 200)[-50:].mean()
    after = lorenz.distance(lorenz.train(lorenz.METHODS["TBPTT(50)"], [100], 8, 200, 8), z, 200)[-50:].mean()
    assert after < 0.5 * before
