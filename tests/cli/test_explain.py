"""`bptt explain`: its numbers against plain autograd, what the terminal shows of them, and wrong use."""

import itertools
import math
import re

import pytest
import torch

import bptt
from bptt.cli import EXTRAS, main
from bptt.cli.config import flag, parse
from bptt.cli.explanation.config import ExplainConfig
from bptt.cli.explanation.example import make
from bptt.cli.explanation.work import flat, work
from bptt.equations import ACTIVATIONS, LOSSES, Gradient
from support.textbook import autograd, autograd_by_pair, losses_and_states, parameters

CONFIGURATIONS = [
    "",
    "--steps 1",
    "--steps 7 --hidden 3 --input 2 --output 3 --bias --tau 3 --seed 4",
    "--nonlinearity relu --loss softmax_cross_entropy --output 4 --hidden 4 --steps 5 --seed 2",
    "--nonlinearity sigmoid --bias --radius 3 --steps 6 --tau 1",
    "--nonlinearity identity --hidden 1 --radius 1.2 --tau 4",
    "--text hello --bias --mean-length 5",
]


def worked(words):
    config = parse(ExplainConfig, words.split(), "bptt explain")
    generator = torch.Generator().manual_seed(config.seed)
    example = make(config, generator)
    law = bptt.PolynomialLaw(mean_length=config.mean_length)
    return work(example, config.tau or min(2, len(example.sequence.x)), law, generator)


def by_hand(worked):
    """(network, x, y, h0) as the functions of textbook.py take them."""
    network, sequence = worked.example.network, worked.example.sequence
    return network, sequence.x, sequence.y, torch.zeros_like(network.W[0])


def close(one, other):
    """To 1e-12 of the largest entry."""
    return torch.allclose(one, other, rtol=0, atol=1e-12 * max(1.0, other.abs().max().item()))


def weighted(terms, weights):
    """Σ ω_tk term (t, k), flat."""
    return flat(Gradient(*(None if part is None else torch.einsum("tk,tk...", weights, part) for part in terms)))


@pytest.mark.parametrize("words", CONFIGURATIONS)
def test_numbers_are_those_of_plain_autograd(words):
    found = worked(words)
    given = by_hand(found)
    terms, full = autograd_by_pair(*given), autograd(*given)
    assert all(close(one, other) for one, other in zip(found.terms, terms, strict=True) if other is not None)
    for gradient in (found.full, found.by_recursion, found.by_autograd, found.by_engine):
        assert close(flat(gradient), flat(full))
    for estimate in (*found.truncated, found.draw):
        assert close(flat(estimate.gradient), weighted(terms, estimate.weights)), estimate.name
        assert close(flat(estimate.by_engine), weighted(terms, estimate.weights)), estimate.name


@pytest.mark.parametrize("words", CONFIGURATIONS)
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
    one, other = worked("--steps 4 --tau 2").truncated
    assert one.weights.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert other.weights.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("words", CONFIGURATIONS)
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
    found = worked("--hidden 3 --radius 0.7 --bias")
    network, sequence = found.example.network, found.example.sequence
    for value in (network.U, network.V, network.b, network.c, sequence.x, sequence.y):
        assert torch.equal(value, value.round(decimals=2))
    assert torch.equal(network.W, network.W.round(decimals=3))
    assert torch.linalg.eigvals(network.W).abs().max().item() == pytest.approx(0.7, abs=0.01)


def test_every_choice_of_the_equations_can_be_chosen():
    words = [f"--nonlinearity {f} --loss {loss} --output 2" for f in ACTIVATIONS for loss in LOSSES]
    assert len({tuple(flat(worked(w).full).tolist()) for w in words}) == len(ACTIVATIONS) * len(LOSSES)


def numbers(out, title, columns):
    """The table of that title at the left of the terminal: its rows of numbers, without their labels."""
    lines = out.split(f"\n{title}", 1)[1].splitlines()
    rows = itertools.takewhile(lambda line: line[:1].strip(), lines[2:])
    return torch.tensor([[float(word) for word in row.split()[1 : columns + 1]] for row in rows])


def test_the_terminal_shows_it_all(bptt_):
    result = bptt_("explain", "--hidden", 4, "--input", 2, "--output", 3)
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    found = worked("--hidden 4 --input 2 --output 3")
    trace = found.trace
    forward = torch.cat([trace.a, trace.h, trace.o, trace.l[:, None], trace.e], 1)
    assert torch.allclose(numbers(result.out, "values of each step", 4), forward.T.float(), atol=6e-5, rtol=1e-3)
    cotangents = found.cotangents.sum(0)
    assert torch.allclose(numbers(result.out, "c_t  ", 4), cotangents.T.float(), atol=6e-5, rtol=1e-3)
    for t, k in ((1, 0), (3, 1), (3, 2)):
        assert f" {torch.linalg.matrix_norm(found.jacobians[t, k], 2).item():.4f}" in result.out
    for words in ("Term t = 3, k = 1, written out", "TruncatedBPTT(1, 2) drops 3 of the 10", "boundaries: chance p_t"):
        assert words in result.out


def test_a_seed_is_an_example(bptt_):
    one = bptt_("explain", "--seed", 1).out
    assert one == bptt_("explain", "--seed", 1).out
    assert one != bptt_("explain", "--seed", 2).out


def test_a_chosen_term(bptt_):
    assert "Term t = 2, k = 0, written out" in bptt_("explain", "--term", "2,0").out


def test_data_of_a_file(bptt_, folder):
    (folder / "a.csv").write_text("1,2,0.5,7\n\n-0.25, 1e-3 ,3,8\n")
    sequence = worked("--data a.csv --input 2").example.sequence
    assert sequence.x.tolist() == [[1, 2], [-0.25, 0.001]]
    assert sequence.y.tolist() == [[0.5, 7], [3, 8]]
    assert worked("--data a.csv").example.sequence.y.tolist() == [[7], [8]]
    classes = worked("--data a.csv --loss softmax_cross_entropy").example
    assert (classes.sequence.y.tolist(), classes.network.V.shape) == ([7, 8], (9, 2))
    assert "The sequence is read from a.csv" in bptt_("explain", "--data", "a.csv").out


def test_no_gradient_at_all(bptt_, folder):
    """All zero, and nothing to divide by."""
    (folder / "a.csv").write_text("0,0\n0,0\n")
    result = bptt_("explain", "--data", "a.csv", "--out", "a.html")
    assert (result.code, result.err) == (0, "")
    assert "nan" not in result.out + (folder / "a.html").read_text()


BAD = [
    (["--foo"], "Unrecognized options: --foo"),
    (["--nonlinearity", "softplus"], "invalid choice 'softplus'"),
    (["--loss", "hinge"], "invalid choice 'hinge'"),
    (["--steps", "0"], "--steps 0: must be 1 to 12"),
    (["--steps", "13"], "--steps 13: must be 1 to 12"),
    (["--hidden", "9"], "--hidden 9: must be 1 to 8"),
    (["--input", "0"], "--input 0"),
    (["--output", "17"], "--output 17"),
    (["--output", "1", "--loss", "softmax_cross_entropy"], "needs 2 classes or more"),
    (["--radius", "nan"], "--radius nan: must be 0.1 to 10"),
    (["--seed", "-1"], "--seed -1"),
    (["--tau", "5"], "--tau 5: must be 1 to 4"),
    (["--tau", "0"], "--tau 0: must be 1 to 4"),
    (["--mean-length", "1"], "--mean-length 1.0: must be a number of steps above 1"),
    (["--term", "4,0"], "--term 4,0: there is no loss of step 4; the steps are 0 to 3"),
    (["--term", "1,3"], "has terms for the steps 0 to 1 only, none of step 3"),
    (["--term", "3"], "--term 3: must be two steps, T,K"),
    (["--text", ""], "--text of length 0: must have 2 to 13"),
    (["--text", "a" * 14], "--text of length 14: must have 2 to 13"),
    (["--text", "aaa"], "only one character"),
    (["--text", "abc", "--steps", "2"], "--steps doesn't go with --text"),
    (["--text", "abc", "--loss", "squared_error"], "characters are classes"),
    (["--text", "abc", "--data", "three.csv"], "--text and --data are not allowed together"),
    (["--data", "three.csv", "--steps", "2"], "--steps doesn't go with --data"),
    (["--data", "three.csv", "--input", "3"], "is 3, and there must be 3 of x_t and then 1 or more of y_t"),
    (["--data", "three.csv", "--input", "2", "--output", "2"], "is 3, and there must be 2 of x_t and then 2 of y_t"),
    (["--data", "three.csv", "--loss", "softmax_cross_entropy"], "must be a class, a whole number from 0 to 15"),
    (["--data", "wide.csv"], "more than the 16"),
    (["--data", "long.csv"], "more than 12 rows"),
    (["--data", "ragged.csv"], "ragged.csv, line 2: 2 columns, not 3 as before"),
    (["--data", "words.csv"], "words.csv, line 1: 'x' is not a number"),
    (["--data", "infinite.csv"], "'inf' is not a number"),
    (["--data", "empty.csv"], "T = 0"),
    (["--data", "binary.csv"], "not a UTF-8 text"),
    (["--data", "missing.csv"], "cannot be read (No such file"),
    (["--out", "."], "give a file in a folder that exists"),
    (["--out", "nowhere/a.html"], "give a file in a folder that exists"),
    (["--out", "x" * 300], "cannot be written"),
    (["--out", "three.csv"], "three.csv exists already. Choose another --out, or give --overwrite"),
    (["--explorer", "three.csv"], "three.csv exists already. Choose another --explorer, or give --overwrite"),
    (["--explorer", "new.html"], "--explorer new.html: is --out too"),
    (["--explorer", "nowhere/a.html"], "--explorer nowhere/a.html: give a file in a folder that exists"),
    (["--overwrite"], "--overwrite applies only to --out and --explorer"),
]


@pytest.mark.parametrize(
    ("words", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_errors(bptt_, folder, words, message):
    """One line, exit code 2, and nothing written; an `--out` before it doesn't change that."""
    contents = {
        "three.csv": b"1,2,3\n4,5,6.5\n",
        "wide.csv": b",".join([b"1"] * 18),
        "long.csv": b"1,2\n" * 13,
        "ragged.csv": b"1,2,3\n4,5\n",
        "words.csv": b"x,y\n1,2\n",
        "infinite.csv": b"1,inf\n",
        "empty.csv": b"\n",
        "binary.csv": b"\xff",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    result = bptt_("explain", *words, *([] if "--out" in words or "--overwrite" in words else ["--out", "new.html"]))
    assert (result.code, result.out) == (2, "")
    assert result.error.startswith("bptt explain: ")
    assert message in result.error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents


def test_help_says_what_each_option_does(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["explain", "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    for name in ExplainConfig.__dataclass_fields__:
        after = shown.split(f" {flag(name)} ", 1)[1].split(" --", 1)[0]
        assert len(re.findall("[a-z]{2,}", after)) > 2, name


def test_jinja2_is_one_of_the_extras():
    assert "jinja2" in EXTRAS
