"""`bptt explain`: what the terminal shows of the numbers, data from files, and wrong use."""

import itertools
import re

import pytest
import torch

import bptt
from bptt.cli import EXTRAS, main
from bptt.cli.config import flag, parse
from bptt.cli.explain import made_example
from bptt.cli.explain_config import ExplainConfig


def worked(words):
    config = parse(ExplainConfig, words.split(), "bptt explain")
    generator = torch.Generator().manual_seed(config.seed)
    return bptt.explain(*made_example(config, generator), generator=generator)


def numbers(out, title, columns):
    """The table of that title at the left of the terminal: its rows of numbers, without their labels."""
    lines = re.split(rf"\n{re.escape(title)}(?=  |\n)", out, maxsplit=1)[1].splitlines()
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
    assert torch.allclose(numbers(result.out, "c_t", 4), cotangents.T.float(), atol=6e-5, rtol=1e-3)
    for t, k in ((1, 0), (3, 1), (3, 2)):
        assert f" {torch.linalg.matrix_norm(found.jacobians[t, k], 2).item():.4f}" in result.out
    for words in ("Term t = 3, k = 1, written out", "TruncatedBPTT(1, 2) drops 3 of the 10", "boundaries: chance p_t"):
        assert words in result.out


def test_a_seed_is_an_example(bptt_):
    one = bptt_("explain", "--seed", 1).out
    assert one == bptt_("explain", "--seed", 1).out
    assert one != bptt_("explain", "--seed", 2).out


def test_the_library_prints_the_same(bptt_, capsys):
    generator = torch.Generator().manual_seed(0)
    print(bptt.explain(*bptt.analysis.example(hidden=3, generator=generator), generator=generator))
    assert capsys.readouterr().out.rstrip() == bptt_("explain", "--hidden", 3).out.rstrip()


def test_a_chosen_term(bptt_):
    assert "Term t = 2, k = 0, written out" in bptt_("explain", "--term", "2,0").out


def test_the_explorer_is_the_library_s(bptt_, folder):
    result = bptt_("explain", "--explorer", "explorer.html")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("The explorer is explorer.html\n")
    assert (folder / "explorer.html").read_text(encoding="utf-8") == bptt.analysis.explorer()


def test_data_of_a_file(bptt_, folder):
    (folder / "a.csv").write_text("1,2,0.5,7\n\n-0.25, 1e-3 ,3,8\n")
    sequence = worked("--data a.csv --input 2")
    assert sequence.x.tolist() == [[1, 2], [-0.25, 0.001]]
    assert sequence.y.tolist() == [[0.5, 7], [3, 8]]
    assert worked("--data a.csv").y.tolist() == [[7], [8]]
    classes = worked("--data a.csv --loss softmax_cross_entropy")
    assert (classes.y.tolist(), classes.network.V.shape) == ([7, 8], (9, 2))
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
    (["--out", "three.csv"], "--out three.csv: exists already. Choose another name, or give --overwrite"),
    (["--explorer", "three.csv"], "--explorer three.csv: exists already. Choose another name, or give --overwrite"),
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
