"""The fuzzy system against the definition in numpy, its gradient against plain autograd, its rules in words."""

import itertools
import math

import numpy as np
import pytest
import torch

import bptt
from bptt.models import TakagiSugeno
from support.refusals import refused

D = torch.float64
SQUARED = bptt.per_step(torch.nn.MSELoss())


def made(seed=1, **keywords):
    """A system in float64 whose parameters are all of their own."""
    model = TakagiSugeno(-2.0, 3.0, dtype=D, **keywords)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, dtype=D, generator=generator)
    return model


def by_definition(model, inputs, state):
    """Equations (1) to (3) by loops over rows, steps, rules and lags; centres and width from the parameters."""
    gaps = np.exp(model.gaps.detach().numpy())
    m = len(model.sets) - 1
    shares = model.closest / m + (1 - model.closest) * gaps / gaps.sum()
    centres = model.low + (model.high - model.low) * np.concatenate([[0.0], np.cumsum(shares)])
    narrow, wide = model.widths
    sigma = (model.high - model.low) / m * (narrow + (wide - narrow) / (1 + math.exp(-model.spread.item())))
    consequents = model.consequents.detach().numpy()
    state, outputs = state.numpy().copy(), []
    for u in inputs.numpy():
        y = np.zeros(len(state))
        for row, s in enumerate(state):
            top = bottom = 0.0
            for r, chosen in enumerate(itertools.product(range(m + 1), repeat=model.lags)):
                strength = math.prod(
                    math.exp(-((s[j] - centres[i]) ** 2) / (2 * sigma**2)) for j, i in enumerate(chosen)
                )
                says = consequents[r, -1]
                for j, i in enumerate(chosen):
                    says += consequents[r, j] * (s[j] - centres[i])
                for j in range(model.inputs):
                    says += consequents[r, model.lags + j] * u[row, j]
                top, bottom = top + strength * says, bottom + strength
            y[row] = top / bottom
        outputs.append(y)
        state = np.concatenate([y[:, None], state[:, :-1]], 1)
    return np.array(outputs), state


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"sets": ("low", "high"), "lags": 3, "inputs": 2},
        {"sets": tuple("abcd"), "lags": 1, "inputs": 0, "closest": 0.4, "widths": (0.2, 1.0)},
    ],
)
def test_outputs_are_those_of_the_definition(keywords):
    model = made(**keywords)
    inputs, state = torch.randn(6, 2, model.inputs, dtype=D), torch.randn(2, model.lags, dtype=D)
    outputs, last = model(inputs, state)
    wanted, end = by_definition(model, inputs, state)
    np.testing.assert_allclose(outputs.detach(), wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(last.detach(), end, rtol=1e-12, atol=1e-12)


def test_firing_is_the_normalised_product_of_memberships():
    model = made()
    s = 2 * torch.randn(5, 2, dtype=D)
    mu = model.memberships(s)  # (rows, lags, sets)
    products = torch.einsum("ri,rj->rij", mu[:, 0], mu[:, 1]).flatten(1)
    torch.testing.assert_close(model.firing(s), products / products.sum(1, keepdim=True), rtol=1e-12, atol=1e-14)
    far = model.firing(torch.tensor([[1e3, -1e3]], dtype=D))  # every product underflows there
    assert far.argmax().item() == 6
    assert far.sum().item() == pytest.approx(1)


def test_rules_that_are_alike_are_the_affine_law():
    model = made()
    model.set_affine(torch.tensor([0.4, -0.3, 0.7, 0.2], dtype=D))
    u = torch.randn(20, 1, 1, dtype=D)
    y, y1, wanted = 0.5, -1.0, []
    for value in u.flatten().tolist():
        y, y1 = 0.4 * y - 0.3 * y1 + 0.7 * value + 0.2, y
        wanted.append(y)
    found, _ = model(u, torch.tensor([[0.5, -1.0]], dtype=D))
    torch.testing.assert_close(found.flatten(), torch.tensor(wanted, dtype=D), rtol=1e-12, atol=1e-12)


def test_centres_stay_ordered_and_apart_and_the_width_inside_its_interval():
    model = TakagiSugeno(-2.0, 4.0, ("a", "b", "c", "d"), widths=(0.5, 0.7), closest=0.3, dtype=D)
    torch.testing.assert_close(model.centres(), torch.tensor([-2.0, 0.0, 2.0, 4.0], dtype=D))
    assert model.width().item() == pytest.approx(2 * 0.6)
    with torch.no_grad():
        model.gaps.copy_(torch.tensor([50.0, -50.0, 0.0]))
        model.spread.fill_(50.0)
    torch.testing.assert_close(model.centres(), torch.tensor([-2.0, 2.8, 3.4, 4.0], dtype=D))
    assert model.width().item() == pytest.approx(2 * 0.7)


def gradient(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def test_gradient_is_plain_autograds_and_that_of_central_differences():
    model = made()
    u, y = torch.randn(12, 3, 1, dtype=D), torch.randn(12, 3, dtype=D)
    start = torch.randn(3, 2, dtype=D)
    bptt.backward(model, SQUARED, (u, y), start, reduction="sum")
    exact = gradient(model)
    ((model(u, start)[0] - y) ** 2).mean(1).sum().backward()
    torch.testing.assert_close(gradient(model), exact, rtol=1e-12, atol=1e-13)
    bptt.backward(model, SQUARED, (u, y), start, reduction="sum", strategy=bptt.TruncatedBPTT(4, 15), memory="8KiB")
    torch.testing.assert_close(gradient(model), exact, rtol=1e-12, atol=1e-13)
    bptt.backward(model, SQUARED, (u, y), start, reduction="sum", strategy=bptt.TruncatedBPTT(4))
    assert (gradient(model) - exact).norm() > 0.01 * exact.norm()

    parameters = dict(model.named_parameters())

    def call(s, *values):
        return torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (u[:3], s))[0]

    values = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(call, (start.clone().requires_grad_(), *values))


def test_rules_in_words():
    model = TakagiSugeno(-1.0, 2.0, ("low", "high"), inputs=2)
    model.set_affine(torch.tensor([0.5, -0.25, 1.0, -2.0, 0.125]))
    assert model.rules() == [
        "IF y is low AND y1 is low THEN y⁺ = -0.12 + 0.50 (y + 1.00) - 0.25 (y1 + 1.00) + 1.00 u1 - 2.00 u2",
        "IF y is low AND y1 is high THEN y⁺ = -0.88 + 0.50 (y + 1.00) - 0.25 (y1 - 2.00) + 1.00 u1 - 2.00 u2",
        "IF y is high AND y1 is low THEN y⁺ = 1.38 + 0.50 (y - 2.00) - 0.25 (y1 + 1.00) + 1.00 u1 - 2.00 u2",
        "IF y is high AND y1 is high THEN y⁺ = 0.62 + 0.50 (y - 2.00) - 0.25 (y1 - 2.00) + 1.00 u1 - 2.00 u2",
    ]
    assert model.labels(torch.tensor([-3.0, 0.4, 0.6])) == ["low", "low", "high"]


@pytest.mark.parametrize(
    "strategy", [bptt.FullBPTT(), bptt.TruncatedBPTT(10), bptt.ARTBP(bptt.ConstantLaw(10), every=5)], ids=repr
)
def test_another_system_is_found_again(strategy):
    """From one affine law for all rules to the system that made the data: a tenth of the error at most is left."""
    truth, model = made(sets=("low", "high"), lags=1), TakagiSugeno(-2.0, 3.0, ("low", "high"), lags=1, dtype=D)
    model.set_affine(torch.tensor([0.3, 0.5, 0.0], dtype=D))
    generator = torch.Generator().manual_seed(0)
    u, start = 2 * torch.randn(40, 8, 1, dtype=D, generator=generator), torch.zeros(8, 1, dtype=D)
    stream = [(u, truth(u, start)[0].detach())]
    before = bptt.evaluate(model, SQUARED, stream, start).mean_loss
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(40):
        for _ in bptt.unroll(model, SQUARED, stream, start, strategy=strategy, generator=generator):
            optimizer.step()
            optimizer.zero_grad()
    assert bptt.evaluate(model, SQUARED, stream, start).mean_loss < 0.1 * before


def test_leading_axes_and_single_precision():
    model = made()
    u, s = torch.randn(4, 2, 3, 1, dtype=D), torch.randn(2, 3, 2, dtype=D)
    outputs, last = model(u, s)
    alone, end = model(u[:, 1, 2], s[1, 2])
    torch.testing.assert_close(outputs[:, 1, 2], alone, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(last[1, 2], end, rtol=1e-13, atol=1e-13)
    single = model.to(torch.float32)(u.float(), s.float())[0]
    torch.testing.assert_close(single, outputs.float(), rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == {"gaps", "spread", "consequents"}


def test_what_does_not_fit_is_refused():
    refused(lambda: TakagiSugeno(1.0, 1.0), "low=1.0", "low < high")
    refused(lambda: TakagiSugeno(0.0, math.nan), "nan", "finite")
    refused(lambda: TakagiSugeno(0.0, 1.0, ("low",)), "two different names")
    refused(lambda: TakagiSugeno(0.0, 1.0, "low"), "two different names")
    refused(lambda: TakagiSugeno(0.0, 1.0, ("low", "low")), "two different names")
    refused(lambda: TakagiSugeno(0.0, 1.0, lags=0), "lags=0", "at least 1")
    refused(lambda: TakagiSugeno(0.0, 1.0, inputs=-1), "inputs=-1", "at least 0")
    refused(lambda: TakagiSugeno(0.0, 1.0, widths=(0.8, 0.4)), "widths", "narrowest")
    refused(lambda: TakagiSugeno(0.0, 1.0, closest=1.0), "closest=1.0", "[0, 1)")
    model = made()
    refused(lambda: model.set_affine(torch.zeros(3)), "(4,)", "(3,)")
    u, s = torch.zeros(5, 2, 1, dtype=D), torch.zeros(2, 2, dtype=D)
    refused(lambda: model(u, None), "the state", "NoneType")
    refused(lambda: model(u[..., 0], s), "inputs", "(5, 2)")
    refused(lambda: model(u, s[:, :1]), "the state", "(2, 1)")
    refused(lambda: model(u.float(), s), "torch.float32", "convert")
    refused(lambda: model(u[:, :1], s), "(5, 1, 1)", "(2, 2)")
    refused(lambda: model(u[:0], s), "T >= 1")
