"""The explorer: its numbers are those of `bptt.equations`, in a browser; it is small, alone, and keys suffice."""

import base64
import hashlib
import random
import re

import pytest
import torch

import bptt
from bptt import PolynomialLaw, equations
from bptt.analysis.explanation.report.explorer import STEPS, example, page
from support.browser import CHROMIUM, WHY_NOT, browser

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)
SETTINGS = 20
OFF = 2.0
"""Where the clip's slider, an exponent of 10, stands for no clip."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    (folder / "page.html").write_text(page(), encoding="utf-8")
    with browser(folder / "profile") as tab:
        tab.look(1280, dark=False)
        tab.open(folder / "page.html")
        yield tab


def choose(tab, **values):
    """Move controls as a hand does: each tells the page of its change."""
    for name, value in values.items():
        event = "change" if name in ("nonlinearity", "strategy") else "input"
        tab.run(
            f"{{const control = document.getElementById({name!r}); control.value = {value!r}; "
            f"control.dispatchEvent(new Event({event!r}));}}"
        )


def shown(tab, name):
    """All digits of a number of the page, or of a table's numbers."""
    found = tab.run(f"[...document.querySelectorAll('#{name}[title], #{name} td')].map((at) => Number(at.title))")
    return torch.tensor(found, dtype=torch.float64)


def equal(one, other):
    """To 1e-9 of the largest."""
    other = torch.as_tensor(other, dtype=torch.float64).flatten()
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * other.abs().max().item())


def drawn_pattern(tab, mean_length):
    cuts = tab.run("document.getElementById('cuts').textContent")
    cuts = () if cuts == "none" else tuple(map(int, cuts.split(", ")))
    return equations.ARTBPPattern(STEPS, cuts, PolynomialLaw(alpha=3, mean_length=mean_length))


def clipped(trace, t, clip):
    """The norms of the cotangents ∂l_t/∂h_k for k = t .. 0 if none is sent on with a norm above `clip`."""
    cotangent = trace.network.V.T @ trace.e[t]
    norms = [cotangent.norm()]
    for k in range(t, 0, -1):
        cotangent = equations.step_jacobian(trace, k).T @ cotangent
        cotangent = cotangent * min(1.0, clip / max(cotangent.norm().item(), 1e-300))
        norms.append(cotangent.norm())
    return torch.stack(norms)


def drawn_settings():
    pick = random.Random(0)
    for _ in range(SETTINGS):
        t = pick.randrange(STEPS)
        strategy = pick.choice(["full", "last", "cut", "weight", "carry", "snap"])
        yield {
            "radius": pick.randrange(50, 151) / 100,
            "nonlinearity": pick.choice(["identity", "tanh", "relu", "sigmoid"]),
            "strategy": strategy,
            "number": pick.randrange(2, STEPS),
            "clip": pick.randrange(-20, 21) / 10,
            "t": t,
            "k": pick.randrange(t + 1),
        }


def influence_before(trace, a, diagonal):
    """∂h/∂W before step a, (2, 2, 2), by its recursion; diagonal: of it, after each step, unit i by W's row i alone."""
    J = torch.zeros(2, 2, 2, dtype=torch.float64)
    for t in range(a):
        J = torch.einsum("ij,jkl->ikl", equations.step_jacobian(trace, t), J)
        J = J + torch.einsum("i,ik,l->ikl", trace.slopes[t], torch.eye(2).double(), trace.h_before[t])
        J = J * torch.eye(2).unsqueeze(-1) if diagonal else J
    return J


def check_what_is_carried(tab, trace, setting):
    """The page's windows against sums of terms, and of the masked recursion for SnAp-1; the gradient they make."""
    t, k, k1, diagonal = setting["t"], setting["k"], setting["number"], setting["strategy"] == "snap"
    terms, cotangents = equations.pair_terms(trace).W, equations.state_cotangents(trace)
    exact, total = terms.sum((0, 1)), {"inside": 0, "carried": 0}
    for a in range(0, STEPS, k1):
        window = terms[a : a + k1]
        c = equations.step_jacobian(trace, a).T @ cotangents[a : a + k1, a].sum(0)
        J = influence_before(trace, a, diagonal)
        inside, carried = window[:, a:].sum((0, 1)), torch.einsum("i,ikl->kl", c, J)
        if not diagonal:
            equal(carried.flatten(), window[:, :a].sum((0, 1)))
        total = {"inside": total["inside"] + inside, "carried": total["carried"] + carried}
        if a <= t < a + k1:
            tables = {"influence": J.movedim(0, -1), "arriving": c, "window-inside": inside, "window-carried": carried}
            for name, value in tables.items():
                equal(shown(tab, name), value)
            if diagonal and k < a:
                own = [equations.step_jacobian(trace, j).diagonal() for j in range(k + 1, a)]
                delta = trace.slopes[k] * torch.stack([cotangents[t, a - 1], *own]).prod(0)
                equal(shown(tab, "part"), torch.outer(delta, trace.h_before[k]))
    both = total["inside"] + total["carried"]
    for name, value in {**total, "both": both}.items():
        equal(shown(tab, name), value)
        if name != "both":
            equal(shown(tab, f"{name}-size"), value.norm() / exact.norm())
    assert abs(shown(tab, "both-off").item() - (both - exact).norm() / exact.norm()) < 1e-9
    if not diagonal:
        equal(shown(tab, "both"), exact)
    return both


@in_chromium
@pytest.mark.parametrize("setting", [*drawn_settings()], ids=range(SETTINGS))
def test_numbers_are_those_of_the_equations(chromium, setting):
    choose(chromium, **setting)
    t, k, number = setting["t"], setting["k"], setting["number"]
    trace = equations.forward(*example(setting["radius"], setting["nonlinearity"]))
    terms, full = equations.pair_terms(trace).W, equations.gradient_by_double_sum(trace).W
    jacobians = [equations.jacobian(trace, t, j) for j in range(t, -1, -1)]
    equal(shown(chromium, "jacobian"), jacobians[t - k])
    if setting["nonlinearity"] == "identity":
        equal(shown(chromium, "jacobian"), torch.linalg.matrix_power(trace.network.W, t - k))
    equal(shown(chromium, "term"), terms[t, k])
    equal(shown(chromium, "power"), setting["radius"] ** (t - k))
    equal(shown(chromium, "exact"), full)
    equal(shown(chromium, "share"), terms[t, k].norm() / full.norm())
    lags = shown(chromium, "lags").view(t + 1, 4).T
    equal(lags[1], torch.linalg.matrix_norm(torch.stack(jacobians), 2))
    equal(lags[2], equations.state_cotangents(trace)[t, : t + 1].norm(dim=-1).flip(0))
    equal(lags[3], clipped(trace, t, float("inf") if setting["clip"] == OFF else 10 ** setting["clip"]))
    weights = {
        "full": lambda: equations.full_weights(STEPS),
        "last": lambda: equations.truncated_weights(STEPS, number),
        "cut": lambda: equations.subsequence_weights(STEPS, number),
        "weight": lambda: drawn_pattern(chromium, number).weights,
        "carry": lambda: equations.full_weights(STEPS),
        "snap": lambda: equations.subsequence_weights(STEPS, number),
    }[setting["strategy"]]()
    estimate = equations.gradient_by_double_sum(trace, weights).W
    if setting["strategy"] in ("carry", "snap"):
        estimate = check_what_is_carried(chromium, trace, setting)
    equal(shown(chromium, "omega"), weights[t, k])
    assert shown(chromium, "kept").item() == weights.count_nonzero()
    equal(shown(chromium, "estimate"), estimate)
    assert abs(shown(chromium, "error").item() - (estimate - full).norm() / full.norm()) < 1e-9
    cosine = (estimate * full).sum() / (estimate.norm() * full.norm())
    assert abs(shown(chromium, "cosine").item() - cosine) < 1e-9
    assert chromium.said == []


@in_chromium
@pytest.mark.parametrize("nonlinearity", ["identity", "tanh", "relu", "sigmoid"])
@pytest.mark.parametrize(("name", "make"), [("carry", bptt.RTRL), ("snap", bptt.SnAp)])
@pytest.mark.parametrize("k1", [1, 7, 61])
def test_what_is_carried_is_the_gradient_of_the_library(chromium, name, make, k1, nonlinearity):
    network, x, y = example(1.1, nonlinearity)
    model = bptt.nn.SimpleRNN(1, 2, 1, nonlinearity=nonlinearity, bias=False).double()
    model.load_state_dict({symbol: getattr(network, symbol) for symbol in "UWV"})
    bptt.backward(model, equations.squared_error, (x, y), strategy=make(k1=k1), reduction="sum")
    choose(chromium, radius=1.1, nonlinearity=nonlinearity, strategy=name, number=k1)
    equal(shown(chromium, "estimate"), model.W.grad)
    equal(shown(chromium, "both"), model.W.grad)


@in_chromium
def test_the_mean_of_the_draws_is_that_of_artbp_gradients(chromium):
    choose(chromium, radius=0.9, nonlinearity="tanh", strategy="weight", number=6)
    trace = equations.forward(*example(0.9, "tanh"))
    already, mean = shown(chromium, "draws").item(), shown(chromium, "mean")
    total = already * mean
    for count in range(1, 11):
        chromium.run("document.getElementById('draw').click()")
        gradient = equations.artbp_gradient(trace, drawn_pattern(chromium, 6)).W.flatten()
        equal(shown(chromium, "drawn"), gradient)
        total = total + gradient
        equal(shown(chromium, "mean"), total / (already + count))
    for _ in range(20):
        chromium.run("document.getElementById('draw-many').click()")
    assert shown(chromium, "draws").item() == already + 2010
    assert shown(chromium, "off").item() < 0.05


@in_chromium
def test_keys_alone_move_every_control(chromium):
    """Tab reaches each in turn; arrows move a slider and a list, and the page follows."""
    choose(chromium, t=30, k=20)
    chromium.run("document.getElementById('t').focus()")
    chromium.press("ArrowRight", 39)
    assert chromium.run("document.querySelector('.t').textContent") == "31"
    reached = []
    for _ in range(14):
        reached.append(chromium.run("document.activeElement.id || document.activeElement.tagName"))
        chromium.press("Tab", 9)
    assert reached[:7] == ["t", "k", "radius", "clip", "nonlinearity", "strategy", "number"]
    assert {"SUMMARY", "draw", "draw-many", "restart"} <= set(reached)


@in_chromium
def test_a_link_leads_to_a_setting_and_the_address_follows(chromium):
    values = "['t', 'k', 'radius', 'nonlinearity', 'strategy', 'number'].map((id) => document.getElementById(id).value)"
    chromium.run("location.hash = '#t=50&k=45&radius=1.2&nonlinearity=identity&strategy=weight&number=20'")
    chromium.run("new Promise((done) => setTimeout(done, 500))")
    assert chromium.run(values) == ["50", "45", "1.2", "identity", "weight", "20"]
    equal(shown(chromium, "power"), 1.2**5)
    chromium.run("location.hash = '#t=999&nonlinearity=nonsense&nothing=1'")
    chromium.run("new Promise((done) => setTimeout(done, 500))")
    assert chromium.run(values) == ["60", "45", "1.2", "identity", "weight", "20"]
    assert "t=60&k=45" in chromium.run("location.hash")


@in_chromium
def test_it_draws_on_until_it_is_paused(chromium):
    before = shown(chromium, "draws").item()
    chromium.run("document.getElementById('play').click()")
    chromium.run("new Promise((done) => setTimeout(done, 300))")
    chromium.run("document.getElementById('play').click()")
    after = shown(chromium, "draws").item()
    assert after > before
    chromium.run("new Promise((done) => setTimeout(done, 100))")
    assert shown(chromium, "draws").item() == after


@in_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("strategy", ["weight", "snap"])
def test_nothing_is_cut_off_on_a_narrow_screen(chromium, strategy, dark):
    chromium.look(400, dark)
    choose(chromium, radius=1.5, nonlinearity="identity", strategy=strategy, t=60, k=0, clip=-2)
    assert chromium.run("document.documentElement.scrollWidth") <= 400
    cut = "[...document.querySelectorAll('section *')].filter((at) => at.getBoundingClientRect().right > 400).length"
    assert chromium.run(cut) == 0
    chromium.look(1280, dark=False)


@in_chromium
def test_it_asks_for_nothing_and_says_nothing(chromium):
    assert [address.partition(":")[0] for address in chromium.asked] == ["file"]
    assert chromium.said == []


def test_the_page_is_small_and_its_policy_allows_its_own_script_alone():
    text = page()
    assert len(text.encode()) <= 400_000
    assert not re.search(r"https?:|//[a-z]|@import|url\(|@font-face", re.sub(r"http://www\.w3\.org/\S+", "", text))
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    hashes = [
        "sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in styles + scripts
    ]
    assert len(hashes) == 2
    assert f"default-src 'none'; style-src '{hashes[0]}'; script-src '{hashes[1]}'" in text


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5])
def test_the_example_has_the_radius_it_says(radius):
    network, x, y = example(radius, "tanh")
    assert abs(torch.linalg.eigvals(network.W).abs().max().item() - radius) < 1e-12
    assert torch.equal(y[5:], x[:-5])
