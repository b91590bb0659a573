"""A diagnosis against autograd and loops by hand; and that odd runs, wrong use and names from outside do no harm."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bptt.cli import main
from bptt.data import lanes, split
from bptt.models import CharModel

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
SMALL = ["--hidden", "10", "--batch", "4", "--lr", "0.01", "--device", "cpu", "--steps", "25"]
T, B = 24, 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run folders of this text, trained once: `trained("rnn", "tbptt:8")`."""
    made = {}

    def run(cell, strategy, *more):
        if (cell, strategy) not in made:
            path = tmp_path_factory.mktemp("trained")
            (path / "text.txt").write_text(TEXT)
            words = ["--data", str(path / "text.txt"), "--cell", cell, "--strategy", strategy, *SMALL, *more]
            assert main(["train", *words, "--out", str(path / "run")]) == 0
            made[cell, strategy] = path / "run"
        return made[cell, strategy]

    return run


@pytest.fixture
def run(trained, folder):
    """A copy of one that a test may damage."""
    return Path(shutil.copytree(trained("rnn", "tbptt:8"), folder / "run"))


def rewrite(run, change):
    """Change the weights of a run."""
    weights = load_file(run / "weights.safetensors")
    save_file(
        {name: change(name, tensor).contiguous() for name, tensor in weights.items()}, run / "weights.safetensors"
    )


def table(out, title):
    """The rows of the table under the line that begins with `title`: first column -> the others."""
    block = re.split(f"(?m)^{title}.*$", out)[1].strip("\n").split("\n\n")[0].splitlines()
    rows = [re.split(" {2,}", line.strip()) for line in block[2:]]
    return {int(row[0]): [value(word) for word in row[1:]] for row in rows}


def value(word):
    if word == "none":
        return float("nan")
    return float(word.removesuffix(" times").strip("<%")) / (100 if word.endswith("%") else 1)


def least(values):
    """As they are shown: what is smaller than 0.001 % is shown as that."""
    return [max(value, 1e-5) for value in values]


def summary(out, name):
    return re.search(f"(?m)^{name} +(.*)$", out)[1]


@pytest.fixture
def sequence(run):
    """The model of the run in float64, and what `--length T --batch B` reads."""
    model, vocabulary = CharModel.load(run)
    read = lanes(split(vocabulary.encode(TEXT))[1], B)
    return model.double(), read[:T], read[1 : T + 1]


def losses(model, inputs, targets, cut):
    """Step by step: each step's state before it and its loss by row; cut(t): whether the state is detached there."""
    state = model.initial_state(B).requires_grad_()
    states, found = [], []
    for t in range(T):
        state = state.detach().requires_grad_() if cut(t) else state
        states.append(state)
        scores, state = model(inputs[t : t + 1], state)
        found.append(torch.nn.functional.cross_entropy(scores[0], targets[t], reduction="none"))
    return states, found


def gradient(model, total):
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])


def gradient_of_windows(model, inputs, targets, length):
    _, found = losses(model, inputs, targets, lambda t: t % length == 0)
    return gradient(model, torch.stack(found).mean(1).sum())


def gradient_of_last_terms(model, inputs, targets, tau):
    """Every loss through tau steps, each in a loop of its own."""
    return sum(
        gradient(model, losses(model, inputs, targets, lambda t, end=end: t == max(0, end - tau + 1))[1][end].mean())
        for end in range(T)
    )


def test_credit_by_lag_is_autograd_s(bptt_, run, sequence):
    result = bptt_("diagnose", run, "--length", T, "--batch", B)
    assert (result.code, result.err) == (0, "")
    states, found = losses(*sequence, lambda t: False)
    norms = {k: [] for k in range(1, T + 1)}
    for t in range(T):
        for row in range(B):
            credit = torch.autograd.grad(found[t][row], states[: t + 1], retain_graph=True)
            for j, cotangent in enumerate(credit):
                norms[t + 1 - j].append(cotangent[0, row].norm())
    shown = table(result.out, "credit by lag")
    assert list(shown) == [1, 2, 5, 10]
    first = torch.stack(norms[1]).mean().item()
    for lag, row in shown.items():
        values = torch.stack(norms[lag])
        levels = torch.quantile(values, torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype)).tolist()
        mean = values.mean().item()
        assert row == pytest.approx([mean, *levels, *least([mean / first])], rel=6e-3)


def test_shares_dropped_are_those_of_loops_by_hand(bptt_, run, sequence):
    result = bptt_("diagnose", run, "--length", T, "--batch", B)
    full = gradient_of_windows(*sequence, T)
    shown = table(result.out, "share of the gradient")
    assert list(shown) == [1, 2, 5, 10]
    for k, row in shown.items():
        parts = gradient_of_last_terms(*sequence, k), gradient_of_windows(*sequence, k)
        assert row == pytest.approx(least([((part - full).norm() / full.norm()).item() for part in parts]), rel=6e-3)
    own = ((gradient_of_windows(*sequence, 8) - full).norm() / full.norm()).item()
    said = re.search(r"tbptt:8, this run's strategy, drops ([\d.]+)% of this gradient", result.out)
    assert float(said[1]) / 100 == pytest.approx(own, rel=6e-3)


def test_jacobians_and_the_recurrent_weights(bptt_, run, sequence):
    result = bptt_("diagnose", run, "--length", T, "--batch", B)
    model, inputs, targets = sequence
    states, _ = losses(model, inputs, targets, lambda t: False)
    shown = table(result.out, "singular values")
    assert list(shown) == [1, 10]
    for lag, (largest, above, *_) in shown.items():
        found = []
        for row in range(B):

            def ahead(state, row=row, lag=lag):
                return model(inputs[T - lag :, row : row + 1], state.view(1, 1, -1))[1].flatten()

            matrix = torch.autograd.functional.jacobian(ahead, states[T - lag][0, row].detach())
            found.append(torch.linalg.svdvals(matrix))
        found = torch.stack(found)
        assert largest == pytest.approx(found[:, 0].mean().item(), rel=6e-3)
        assert above == pytest.approx((found > 1).double().sum(1).mean().item(), rel=6e-3)
    radius = torch.linalg.eigvals(model.recurrent.weight_hh_l0).abs().max().item()
    assert summary(result.out, "radius").startswith(f"{radius:.3g} of recurrent.weight_hh_l0")


@pytest.mark.parametrize(
    ("weight", "regime"), [(0.3, "vanishing"), (1.0, "marginal"), (1.3, "exploding"), (0.0, "vanishing")]
)
def test_regimes(bptt_, run, weight, regime):
    """A recurrence that never leaves zero, whose Jacobian is `weight` everywhere, so that all is known."""

    def change(name, tensor):
        if name == "recurrent.weight_hh_l0":
            return weight * torch.eye(len(tensor))
        return tensor if name.startswith("decoder") else torch.zeros_like(tensor)

    rewrite(run, change)
    result = bptt_("diagnose", run, "--length", 40, "--batch", 2)
    assert (result.code, result.err) == (0, "")
    rate = f"{torch.tensor(weight).log():+.3g} nats per step" if weight else "nothing is left"
    assert summary(result.out, "regime").startswith(regime)
    assert rate in summary(result.out, "regime")
    memory = {0.3: "5 steps: from that lag on", 1.0: "over 20 steps: ", 1.3: "over 20 steps: ", 0.0: "none: no loss"}
    assert summary(result.out, "memory").startswith(memory[weight])
    of_first = {lag: row[-1] for lag, row in table(result.out, "credit by lag").items()}
    expected = {lag: max(weight ** (lag - 1), 1e-5) if weight else float("nan") for lag in (1, 2, 5, 10, 20)}
    assert of_first == pytest.approx(expected, rel=0.05, nan_ok=True)  # a mean over fewer steps at larger lags


@pytest.mark.parametrize(
    ("cell", "strategy", "more", "said"),
    [
        ("gru", "artbp:6", [], "artbp:6, this run's strategy, drops nothing on average"),
        ("lstm", "full", ["--sequence-length", "20"], "full, this run's strategy, drops nothing within a sequence"),
        ("lstm", "tbptt:4:30", ["--layers", "2"], r"tbptt:4:30, this run's strategy, drops [\d.<]+% of"),
        ("rnn", "tbptt:90", [], "tbptt:90, this run's strategy, cuts nothing in 40 steps"),
    ],
)
def test_what_the_run_s_own_strategy_drops(bptt_, trained, capsys, cell, strategy, more, said):
    path = trained(cell, strategy, *more)
    capsys.readouterr()
    result = bptt_("diagnose", path, "--length", 40, "--batch", 2)
    assert (result.code, result.err) == (0, "")
    assert re.search(said, result.out), result.out
    shown = result.out.split("\n\n", 1)[1].split("\nThe plot")[0]  # the names above and below have any length
    assert max(map(len, shown.splitlines())) <= 80
