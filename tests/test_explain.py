"""`explain`: its numbers against plain autograd, as plain data, in a notebook, as a plot, and what it refuses."""

import itertools
import json
import math

import matplotlib as mpl
import matplotlib.figure
import pytest
import torch

import bptt
from bptt.analysis import example
from bptt.analysis.explanation.work import flat
from bptt.equations import ACTIVATIONS, LOSSES, Gradient, Network
from support.textbook import autograd, autograd_by_pair, losses_and_states, parameters

CONFIGURATIONS = [
    {},
    {"steps": 1},
    {"steps": 7, "hidden": 3, "inputs": 2, "outputs": 3, "bias": True, "tau": 3, "seed": 4},
    {"nonlinearity": "relu", "loss": "softmax_cross_entropy", "outputs": 4, "hidden": 4, "steps": 5, "seed": 2},
    {"nonlinearity": "sigmoid", "bias": True, "radius": 3, "steps": 6, "tau": 1},
    {"nonlinearity": "identity", "hidden": 1, "radius": 1.2, "tau": 4},
    {"text": "hello", "bias": True, "law": bptt.PolynomialLaw(mean_length=5)},
    {"steps": 3, "law": bptt.ConstantLaw(3)},
]
ONE = Network(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))
each = pytest.mark.parametrize("words", CONFIGURATIONS, ids=str)


def worked(words):
    """`explain` of `example`: the former's own words, and "seed", aside."""
    words = dict(words)
    generator = torch.Generator().manual_seed(words.pop("seed", 0))
    own = {name: words.pop(name) for name in ("tau", "law", "term") if name in words}
    return bptt.explain(*example(**words, generator=generator), **own, generator=generator)


def by_hand(worked):
    """(network, x, y, h0) as the functions of textbook.py take them."""
    return worked.network, worked.x, worked.y, torch.zeros_like(worked.network.W[0])


def close(one, other):
    """To 1e-12 of the largest entry."""
    return torch.allclose(one, other, rtol=0, atol=1e-12 * max(1.0, other.abs().max().item()))


def weighted(terms, weights):
    """Σ ω_tk term (t, k), flat."""
    return flat(Gradient(*(None if part is None else torch.einsum("tk,tk...", weights, part) for part in terms)))


@each
def test_numbers_are_those_of_plain_autograd(words):
    found = worked(words)
    given = by_hand(found)
    terms, full = autograd_by_pair(*given), autograd(*given)
    assert all(close(one, other) for one, other in zip(found.terms, terms, strict=True) if other is not None)
    for gradient in (found.full, *found.others.values()):
        assert close(flat(gradient), flat(full))
    for estimate in (*found.truncated, found.draw):
        assert close(flat(estimate.gradient), weighted(terms, estimate.weights)), estimate.name
        assert close(flat(estimate.by_engine), weighted(terms, estimate.weights)), estimate.name


@each
def test_jacobians_and_cotangents_are_those_of_plain_autograd(words):
    found = worked(words)
    network, x, y, h0 = by_hand(found)
    losses, states = losses_and_states(network, parameters(network, len(x)), x, y, h0)

    def rows(values, state):
        grads = [torch.autograd.grad(v, state, retain_graph=True, allow_unused=True)[0] for v in values]
        return torch.stack([torch.zeros_like(state) if grad is None else grad for grad in grads])

    for k, state in enumerate(states):
        assert close(found.cotangents[:, k], rows(losses, state))
        for t in range(k, len(x)):
            assert close(found.jacobians[t, k], rows(states[t], state))


def test_weights_of_truncation():
    one, other = worked({"steps": 4, "tau": 2}).truncated
    assert one.weights.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert other.weights.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


@each
def test_the_mean_over_every_pattern_is_the_full_gradient(words):
    """With chances and factors computed here, by walking the boundaries of each pattern."""
    found = worked(words)
    steps, law, terms = found.trace.steps, found.pattern.law, autograd_by_pair(*by_hand(found))
    full = flat(autograd(*by_hand(found)))
    mean, square = torch.zeros_like(full), 0.0
    for cut in itertools.product([False, True], repeat=steps - 1):
        chance, since, factor = 1.0, 1, [1.0]
        for is_cut in cut:
            p = law(since)
            chance *= p if is_cut else 1 - p
            factor.append(0.0 if is_cut else 1 / (1 - p))
            since = 1 if is_cut else since + 1
        pairs = itertools.product(range(steps), range(steps))
        weights = [math.prod(factor[k + 1 : t + 1]) if k <= t else 0.0 for t, k in pairs]
        gradient = weighted(terms, torch.tensor(weights, dtype=torch.float64).view(steps, steps))
        mean += chance * gradient
        square += chance * (gradient - full).square().sum().item()
    assert found.expectation.patterns == 2 ** (steps - 1)
    assert (found.expectation.mean - full).abs().max() <= 1e-12 * full.abs().max()
    assert close(found.expectation.mean, mean)
    assert found.expectation.deviation == pytest.approx(square**0.5 / full.norm().item(), rel=1e-9, abs=1e-12)


def test_what_is_drawn_has_few_decimals_and_the_radius():
    found = worked({"hidden": 3, "radius": 0.7, "bias": True})
    network = found.network
    for value in (network.U, network.V, network.b, network.c, found.x, found.y):
        assert torch.equal(value, value.round(decimals=2))
    assert torch.equal(network.W, network.W.round(decimals=3))
    assert torch.linalg.eigvals(network.W).abs().max().item() == pytest.approx(0.7, abs=0.01)


def test_every_choice_of_the_equations_can_be_chosen():
    words = [{"nonlinearity": f, "loss": loss, "outputs": 2} for f in ACTIVATIONS for loss in LOSSES]
    assert len({tuple(flat(worked(w).full).tolist()) for w in words}) == len(ACTIVATIONS) * len(LOSSES)


@each
def test_plain_data_and_back_through_json(words):
    found = worked(words)
    again = bptt.Explanation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again.to_dict() == found.to_dict()
    assert again.y.dtype == found.y.dtype
    assert str(again) == str(found)


def test_a_law_of_ones_own():
    found = worked({"law": lambda k: 0.5})
    assert found.pattern.hazards[1:] == (0.5, 0.5, 0.5)
    with pytest.raises(TypeError, match=r"Take records\(\)"):
        found.to_dict()


def test_records_are_the_terms():
    found = worked({"bias": True, "tau": 2})
    records = found.records()
    assert [(row["t"], row["k"], row["lag"]) for row in records] == [
        (t, k, t - k) for t in range(4) for k in range(t + 1)
    ]
    terms = autograd_by_pair(*by_hand(found))
    for row in records:
        parts = [terms.U, terms.W, terms.V, terms.b, terms.c]
        norms = [part[row["t"], row["k"]].norm().item() for part in parts]
        assert [row[f"norm_{name}"] for name in "UWVbc"] == pytest.approx(norms, rel=1e-9, abs=1e-12)
        assert row["norm"] == pytest.approx(math.hypot(*norms), rel=1e-9)
        assert row["TruncatedBPTT(1, 2)"] == float(row["lag"] < 2)
    kept = [row["TruncatedBPTT(2, 2)"] for row in records]
    assert kept == [float(row["t"] // 2 == row["k"] // 2) for row in records]


def test_the_verdict_and_the_table_say_what_truncation_drops():
    found = worked({"tau": 2})
    full = flat(autograd(*by_hand(found)))
    lost = weighted(autograd_by_pair(*by_hand(found)), torch.ones(4, 4, dtype=torch.float64).tril(-2))
    error = f"{(lost.norm() / full.norm()).item():.4f}"
    assert f"TruncatedBPTT(1, 2): drops 3 of the 10 terms, off by {error} |dL/dθ|" in found.verdict().splitlines()
    assert found.table().rows[1][:3] == ("TruncatedBPTT(1, 2)", found.table().rows[1][1], error)
    assert "the mean over all 8 patterns of cuts is the full gradient" in found.verdict()


def test_a_notebook_sets_formulas_and_shows_every_table():
    found = worked({"bias": True, "term": (2, 0)})
    shown = found._repr_html_()
    assert shown.count("<table>") == sum(len(section.tables) for section in found.sections) + 4
    assert shown.count("<h3>") == len(found.sections)
    assert shown.count("<math ") > 30
    assert "Term t = 2, k = 0, written out" in shown
    assert "<script" not in shown
    assert "http" not in shown
    assert "<p>" + shown == "".join(("<p>", shown))  # plain text, which nothing escapes


def test_a_notebook_without_the_packages_of_pages_shows_the_text(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "latex2mathml.converter", None)
    for name in ("page", "formula"):
        monkeypatch.delitem(__import__("sys").modules, f"bptt.analysis.explanation.report.{name}", raising=False)
    found = worked({})
    assert found._repr_html_().startswith("<pre>\n1. The network and its sequence ──")
    with pytest.raises(ImportError, match=r"a page needs latex2mathml.converter, .*pip install 'bptt\[cli\]'"):
        found.page()


@pytest.mark.parametrize("words", [{}, {"steps": 12}, {"steps": 1}], ids=str)
def test_the_plot_shows_each_term(words):
    found, axes = worked(words), mpl.figure.Figure().add_subplot()
    assert found.plot(axes) is axes
    steps = found.trace.steps
    assert len(axes.texts) == (len(found.records()) if steps <= 6 else 0)
    shown = torch.tensor(axes.images[0].get_array().filled(0).tolist(), dtype=torch.float64)
    norms = sum(part.flatten(2).square().sum(-1) for part in found.terms if part is not None).sqrt()
    torch.testing.assert_close(shown.view(steps, steps), norms, rtol=1e-9, atol=1e-12)
    axes.figure.canvas.draw()


def test_no_gradient_at_all():
    found = bptt.explain(ONE, torch.zeros(3, 1), torch.zeros(3, 1))
    found.plot(mpl.figure.Figure().add_subplot()).figure.canvas.draw()
    assert "nan" not in str(found) + found._repr_html_() + found.verdict()


def test_a_network_of_ones_own_is_told_as_such():
    model = bptt.nn.SimpleRNN(2, 3, 1, "tanh")
    before = torch.get_rng_state()
    found = bptt.explain(Network.of(model), torch.randn(4, 2), torch.randn(4, 1))
    assert "Parameters are as given, to six digits." in str(found)
    assert "drawn at random" not in str(found)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    str(bptt.explain(*example()))
    assert torch.equal(before, torch.get_rng_state())


def test_one_bias_alone():
    network = Network(torch.ones(2, 1), torch.eye(2), torch.ones(1, 2), b=torch.ones(2))
    found = bptt.explain(network, torch.ones(3, 1), torch.zeros(3, 1))
    assert [part is None for part in found.drawn] == [False, False, False, False, True]
    for other in found.others.values():
        assert close(flat(other), flat(found.full))
    assert "dL/db" in str(found)
    assert "dL/dc" not in str(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"network": torch.nn.RNN(1, 1)}, "network=RNN: must be a bptt.equations.Network; Network.of"),
        ({"x": torch.ones(13, 1), "y": torch.ones(13, 1)}, "steps 13: must be 1 to 12"),
        ({"network": Network(torch.ones(9, 1), torch.ones(9, 9), torch.ones(1, 9))}, "hidden 9: must be 1 to 8"),
        ({"x": torch.ones(3, 2)}, r"x has shape \(3, 2\)"),
        ({"tau": 4}, "tau 4: must be 1 to 3"),
        ({"tau": True}, "tau True"),
        ({"term": (3, 0)}, "term 3,0: there is no loss of step 3"),
        ({"term": (1, 2)}, "none of step 2"),
        ({"term": 3}, r"term 3: must be two steps, \(t, k\)"),
        ({"term": (2.0, 1)}, "must be two steps"),
        ({"characters": "ab"}, "characters='ab': must have one for each component"),
        ({"characters": "a"}, "characters='a': x_t must be one-hot and y_t a class"),
        ({"x": torch.full((3, 1), 1e200, dtype=torch.float64)}, "the loss at step 0 is inf"),
        ({"law": lambda k: 2.0}, "law"),
    ],
)
def test_refused(words, message):
    given = {"network": ONE, "x": torch.ones(3, 1), "y": torch.ones(3, 1), **words}
    with pytest.raises((ValueError, TypeError), match=message):
        bptt.explain(**given)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"steps": 13}, "steps 13: must be 1 to 12"),
        ({"hidden": 0}, "hidden 0: must be 1 to 8"),
        ({"x": torch.ones(3, 1)}, "give x and y"),
        ({"text": "ab", "x": torch.ones(3, 1), "y": torch.ones(3, 1)}, "give x and y"),
        ({"x": torch.ones(3), "y": torch.ones(3)}, r"x has shape \(3,\)"),
        ({"text": "a"}, "text of length 1: must have 2 to 13"),
        ({"text": "aa"}, "only one character"),
        ({"text": "ab", "loss": "squared_error"}, "characters are classes"),
        ({"loss": "softmax_cross_entropy", "outputs": 1}, "needs 2 classes or more"),
        ({"loss": "hinge"}, "loss='hinge' is unknown"),
    ],
)
def test_examples_that_can_t_be(words, message):
    with pytest.raises(ValueError, match=message):
        example(**words)
