"""The flow against closed forms, against another discretisation of the same equation, and its gradient by autograd."""

import math

import pytest
import torch

import bptt
from bptt.models import Flow
from support.refusals import refused

MODES = [(1, 2), (2, -1), (0, 3)]
D = torch.float64


def made(size=16, viscosity=0.05, modes=MODES, **keywords):
    """A flow in float64 with a forcing, and a state to start from."""
    generator = torch.Generator().manual_seed(1)
    given = 0.3 * torch.randn(len(modes), 2, dtype=D, generator=generator)
    flow = Flow(size, viscosity, modes, given, dtype=D, **keywords)
    return flow, flow.random_state(generator=generator)


def run(flow, state, steps):
    return flow(torch.zeros(steps), state)[1]


def carried_vortices(dt, seconds=2.0, size=16, viscosity=0.05, mean=(1.0, 0.5)):
    """The largest error of Taylor-Green vortices carried by a mean flow, over their largest vorticity at first.

    w = 2 cos(x - U t) cos(y - V t) e^{-2νt} solves the equation without forcing: u·∇w = 0, as w is a function of ψ.
    """
    flow = Flow(size, viscosity, dt=dt, mean=mean, dtype=D)
    x, y = flow.grid()
    outputs, _ = flow(torch.zeros(round(seconds / dt)), flow.spectrum(2 * torch.cos(x) * torch.cos(y)))
    t = dt * torch.arange(1, len(outputs) + 1, dtype=D)[:, None, None]
    exact = 2 * torch.cos(x - mean[0] * t) * torch.cos(y - mean[1] * t) * torch.exp(-2 * viscosity * t)
    return ((flow.vorticity(outputs) - exact).abs().max() / 2).item()


def test_taylor_green_vortices_carried_by_a_mean_flow():
    assert carried_vortices(0.02) <= 1e-7
    coarse, middle, fine = (carried_vortices(dt) for dt in (0.1, 0.05, 0.025))
    assert math.log2(coarse / middle) == pytest.approx(4, abs=0.1)
    assert math.log2(middle / fine) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("mode", [(2, -1), (0, 3), (3, 0), (-1, 2)])
def test_one_forced_mode_tends_to_its_laminar_flow(mode):
    """A single wave doesn't carry itself: w = f (1 - e^{-νk²t}) / (νk²) from rest."""
    flow = Flow(16, 0.1, [mode], [(0.7, -0.4)], dtype=D)
    x, y = flow.grid()
    phase = mode[0] * x + mode[1] * y
    rate = 0.1 * (mode[0] ** 2 + mode[1] ** 2)
    force = 0.7 * torch.cos(phase) - 0.4 * torch.sin(phase)
    torch.testing.assert_close(flow.force().detach(), force, rtol=0, atol=1e-14)
    reached = flow.vorticity(run(flow, flow.spectrum(torch.zeros(16, 16, dtype=D)), 50))
    torch.testing.assert_close(reached.detach(), force * (1 - math.exp(-rate)) / rate, rtol=0, atol=1e-7)


def other_run(vorticity, force, viscosity, dt, steps, mean):
    """u·∇w as it is written, on a grid three times as fine by full transforms, cut off at |k| < n/3; Heun steps."""
    n = len(vorticity)
    fine, k = 3 * n, torch.fft.fftfreq(3 * n, 1 / (3 * n), dtype=D)
    kx, ky = k[:, None], k[None, :]
    square = kx**2 + ky**2
    keep = (kx.abs() < n / 3) & (ky.abs() < n / 3) & (square > 0)
    old = torch.fft.fftfreq(n, 1 / n).long() % fine

    def refined(field):
        spectrum = torch.zeros(fine, fine, dtype=torch.complex128)
        spectrum[old[:, None], old[None, :]] = torch.fft.fft2(field) * (fine / n) ** 2
        return spectrum * keep

    def grid(spectrum):
        return torch.fft.ifft2(spectrum).real

    f = refined(force)

    def rate(w):
        stream = w / square.clamp(min=1)
        ux, uy = grid(1j * ky * stream) + mean[0], grid(-1j * kx * stream) + mean[1]
        carried = ux * grid(1j * kx * w) + uy * grid(1j * ky * w)
        return (f - torch.fft.fft2(carried)) * keep - viscosity * square * w

    w = refined(vorticity)
    for _ in range(steps):
        first = rate(w)
        w = w + dt / 2 * (first + rate(w + dt * first))
    return grid(w)[::3, ::3]


def test_the_same_flow_as_another_discretisation():
    flow, start = made(mean=(0.3, -0.2), dt=0.01)
    reached = flow.vorticity(run(flow, start, 20)).detach()
    errors = [
        (other_run(flow.vorticity(start), flow.force().detach(), 0.05, dt, steps, (0.3, -0.2)) - reached).abs().max()
        for dt, steps in ((0.002, 100), (0.001, 200))
    ]
    assert errors[1] < 2e-6
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)  # Heun's own error, of order 2: nothing else is left


def test_gradient_is_autograds_and_that_of_central_differences():
    flow, start = made(size=8, modes=MODES[:2])
    parameters = tuple(p.detach().clone().requires_grad_() for p in flow.parameters())
    names = [name for name, _ in flow.named_parameters()]

    def call(state, *values):
        return torch.func.functional_call(flow, dict(zip(names, values, strict=True)), (torch.zeros(2), state))[0]

    assert torch.autograd.gradcheck(call, (start.clone().requires_grad_(), *parameters), eps=1e-6, atol=1e-6)


def seen(flow, steps, every=4):
    """Targets: the vorticity at some points of a run of another viscosity; the loss; and what steps count."""
    points = torch.tensor([[0, 1], [3, 7], [9, 2], [5, 5], [11, 11]])
    truth, start = made(flow.size, 0.08)
    with torch.no_grad():
        targets = truth.observe(truth(torch.zeros(steps), start)[0], points)
    mask = torch.arange(1, steps + 1) % every == 0
    return bptt.Chunk(torch.zeros(steps), targets, mask=mask), lambda w, y: (flow.observe(w, points) - y) ** 2


def gradient(flow):
    taken = torch.cat([p.grad.flatten() for p in flow.parameters()])
    flow.zero_grad()
    return taken


def test_gradient_by_the_engine_agrees_with_central_differences():
    flow, start = made()
    chunk, loss = seen(flow, 60)
    bptt.backward(flow, loss, chunk, start)
    exact = gradient(flow)
    eps, found = 1e-5, []
    for p in flow.parameters():
        for entry in p.data.view(-1):
            kept, values = entry.item(), []
            for moved in (kept + eps, kept - eps):
                entry.fill_(moved)
                values.append(bptt.evaluate(flow, loss, [chunk], start).loss.item() / 60)
            entry.fill_(kept)
            found.append((values[0] - values[1]) / (2 * eps))
    torch.testing.assert_close(torch.tensor(found, dtype=D), exact, rtol=1e-6, atol=1e-9)


def test_gradient_is_the_same_under_a_budget_and_by_a_reach_that_covers_all():
    flow, start = made()
    chunk, loss = seen(flow, 40)
    stored = bptt.backward(flow, loss, chunk, start)
    exact = gradient(flow)
    small = stored.memory_bytes // 6
    update = bptt.backward(flow, loss, chunk, start, memory=small)
    assert update.memory_bytes <= small
    torch.testing.assert_close(gradient(flow), exact, rtol=1e-12, atol=1e-16)
    bptt.backward(flow, loss, chunk, start, strategy=bptt.TruncatedBPTT(8, 47))
    torch.testing.assert_close(gradient(flow), exact, rtol=1e-12, atol=1e-16)
    bptt.backward(flow, loss, chunk, start, strategy=bptt.TruncatedBPTT(8))
    assert (gradient(flow) - exact).norm() > 0.05 * exact.norm()


def test_mean_over_all_patterns_of_cuts_is_the_exact_gradient():
    """Two draws, four patterns: each pattern's gradient is linear in the weights, so the mean comes out exactly."""
    flow, start = made()
    chunk, loss = seen(flow, 12)
    counts = torch.arange(1, 13) % 4 == 0
    bptt.backward(flow, loss, chunk, start, reduction="sum")
    exact = gradient(flow)
    p = 0.3
    found = torch.zeros_like(exact)
    for cuts in ((False, False), (True, False), (False, True), (True, True)):
        weights = [0.0 if cut else 1 / (1 - p) for cut in cuts]
        state, total = start, torch.zeros((), dtype=D)
        for part, w in enumerate([1.0, *weights]):
            state = bptt.scale_gradient(state, w)
            rows = slice(4 * part, 4 * part + 4)
            outputs, state = flow(chunk.inputs[rows], state)
            total = total + (loss(outputs, chunk.targets[rows]).mean(-1) * counts[rows]).sum()
        total.backward()
        found += math.prod(p if cut else 1 - p for cut in cuts) * gradient(flow)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-14)


def test_viscosity_and_forcing_are_found_again():
    flow, start = made(size=12)
    wanted = [p.detach().clone() for p in flow.parameters()]
    points = torch.randint(12, (12, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        targets = flow.observe(flow(torch.zeros(40), start)[0], points)
        flow.log_viscosity.add_(math.log(2))
        flow.coefficients.zero_()
    optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=25, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        chunk = (torch.zeros(40), targets)
        return bptt.backward(flow, lambda w, y: (flow.observe(w, points) - y) ** 2, chunk, start, memory="256KiB").loss

    optimizer.step(closure)
    for p, value in zip(flow.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-4, atol=1e-4)


def test_leading_axes_are_flows_of_their_own():
    flow, start = made(mean=(0.3, 0.0))
    many = torch.stack([start, start.conj().resolve_conj(), 0.5 * start]).unflatten(0, (3, 1))
    many[1] = flow.random_state()
    outputs, last = flow(torch.zeros(4), many)
    assert outputs.shape == (4, 3, 1, 16, 16)
    for i in range(3):
        alone, end = flow(torch.zeros(4), many[i, 0])
        torch.testing.assert_close(outputs[:, i, 0], alone, rtol=1e-13, atol=1e-12)
        torch.testing.assert_close(last[i, 0], end, rtol=1e-13, atol=1e-12)


def test_states_and_grids():
    flow, _ = made(size=15)
    generator = torch.Generator().manual_seed(0)
    start = flow.random_state(largest=3, rms=0.7, generator=generator)
    field = flow.vorticity(start)
    assert field.square().mean().sqrt().item() == pytest.approx(0.7)
    k = torch.fft.fftfreq(15, 1 / 15)
    high = (k[:, None] ** 2 + k[None, :] ** 2) > 9
    assert torch.fft.fft2(field)[high].abs().max() < 1e-12
    torch.testing.assert_close(flow.spectrum(field + 5), start, rtol=0, atol=1e-12)  # the mean is dropped
    x, y = flow.grid()
    assert (x[2, 3].item(), y[2, 3].item()) == pytest.approx((4 * math.pi / 15, 6 * math.pi / 15))
    torch.testing.assert_close(flow.observe(start, torch.tensor([[2, 3]])), field[2, 3][None])
    again = flow.random_state(largest=3, rms=0.7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, start)


def test_single_precision_and_conversion():
    flow, start = made()
    wanted = run(flow, start, 5)
    flow = flow.to(torch.float32)
    reached = run(flow, start.to(torch.complex64), 5)
    assert reached.dtype == torch.complex64
    torch.testing.assert_close(reached.to(torch.complex128), wanted, rtol=1e-4, atol=1e-3)
    assert set(flow.state_dict()) == {"log_viscosity", "coefficients"}


def test_what_does_not_fit_is_refused():
    refused(lambda: Flow(3, 0.1), "size=3", "at least 4")
    for wrong in (0.0, -1.0, math.nan, math.inf):
        refused(lambda wrong=wrong: Flow(16, wrong), "viscosity", "above 0")
        refused(lambda wrong=wrong: Flow(16, 0.1, dt=wrong), "dt", "above 0")
    refused(lambda: Flow(16, 0.1, [(0, 0)]), "(0, 0)")
    refused(lambda: Flow(16, 0.1, [(6, 0)]), "(6, 0)", "16/3")
    refused(lambda: Flow(16, 0.1, [(1, 2), (-1, -2)]), "(-1, -2)", "twice")
    refused(lambda: Flow(16, 0.1, [(1.5, 2)]), "whole numbers")  # pyright: ignore[reportArgumentType]
    refused(lambda: Flow(16, 0.1, MODES, [(1.0, 0.0)]), "(3, 2)", "(1, 2)")
    flow, start = made()
    refused(lambda: flow.random_state(largest=0.5), "largest=0.5", "at least 1")
    refused(lambda: flow(torch.zeros(0), start), "T >= 1")
    refused(lambda: flow(torch.zeros(2), start[:, :5]), "(..., 16, 16)", "(16, 5)")
    refused(lambda: flow(torch.zeros(2), flow.vorticity(start)), "torch.float64", "spectrum")
    refused(lambda: flow(torch.zeros(2), None), "NoneType")
    refused(lambda: flow(torch.zeros(2), start.to(torch.complex64)), "complex64", "flow.to")
