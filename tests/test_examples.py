"""The examples run and say something, the pages' code runs as written, and the benchmarks still start."""

import re
import runpy
import sys

import pytest
import torch

from support.pages import PAGES, ROOT, code, name_of, printed

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONG = {"flow", "fuzzy", "lorenz"}  # at most 150 lines, and they take `--quick` and `--out`, a folder for their plots
BENCHMARKS = {
    path.stem: path for pattern in ("*.py", "reproductions/*.py") for path in (ROOT / "benchmarks").glob(pattern)
}
QUICK = {"crash": ["--kills", "1"], "influence_balancing": ["--steps", "300"], "unbiased": ["--seeds", "1"]}
"""The others take `--quick`."""


@pytest.fixture(autouse=True)
def leave_torch_as_it_was():
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def beside_benchmarks(monkeypatch):
    """As a script of `benchmarks/` sees it: `support` is theirs, not that of the tests."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "support"]:
        monkeypatch.delitem(sys.modules, name)


SLOW = (
    "spectral_radius.py",
    "carry.md",
    "comparing.md",
    "control.md",
    "encoder_decoder.py",
    "memory.md",
    "recurrent_rl.md",
    "spiking.md",
    "task_trained.md",
    "theory_growth.md",
)
"""They take seconds each, and run in the deep profile."""


def deep_if_slow(path):
    return pytest.param(path, marks=pytest.mark.deep) if path.name in SLOW else path


@pytest.mark.parametrize("path", [deep_if_slow(path) for path in EXAMPLES], ids=name_of)
def test_example_runs_and_says_something(path, tmp_path, monkeypatch, capsys):
    long = path.stem in LONG
    assert len(path.read_text().splitlines()) <= (150 if long else 80)
    monkeypatch.setattr(sys, "argv", [str(path), *(["--quick", "--out", str(tmp_path / "new")] if long else [])])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert not long or list((tmp_path / "new").glob("*.png"))


def test_there_are_examples():
    assert {"detach_loop", "encoder_decoder", "long_sequence", "own_step"} <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("page", [deep_if_slow(page) for page in PAGES if code(page)], ids=name_of)
def test_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page build on one another: they share one namespace. They print what the page shows."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    shown = printed(page)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in code(page):
        capsys.readouterr()
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        if block.line in shown:
            check_printed(capsys.readouterr().out, shown[block.line])


def check_printed(out: str, shown: str) -> None:
    """The same words, and the same numbers within 5 %, since training makes more of rounding."""
    number = r"\d[\d,]*\.?\d*(?:e[+-]?\d+)?"
    assert re.sub(number, "#", out).split() == re.sub(number, "#", shown).split()
    found, expected = ([float(n.replace(",", "")) for n in re.findall(number, text)] for text in (out, shown))
    assert found == pytest.approx(expected, rel=0.05, abs=1e-6)


def test_the_readme_is_short_and_has_code():
    """A page to be read whole; the tour has the rest."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    (block,) = code(ROOT / "README.md")
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 12
    assert len(code(ROOT / "docs" / "tour.md")) >= 15


def test_every_relative_link_of_a_page_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.deep
@pytest.mark.parametrize("name", sorted(BENCHMARKS))
@pytest.mark.usefixtures("beside_benchmarks")
def test_benchmark_starts(name, monkeypatch, capsys):
    """Every part of it once, on a fraction of the work: no target is judged, so no time is measured here."""
    path = BENCHMARKS[name]
    monkeypatch.setattr(sys, "argv", [str(path), *QUICK.get(name, ["--quick"])])
    monkeypatch.syspath_prepend(str(path.parent))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code == 0
    assert "no target was judged" in capsys.readouterr().out


def test_there_are_benchmarks():
    assert {*QUICK, "aicher_copy", "claims", "ptb_char"} < set(BENCHMARKS)


@pytest.mark.parametrize("words", [[], ["no-such-file.txt"]])
@pytest.mark.usefixtures("beside_benchmarks")
def test_the_treebank_is_asked_for_in_a_line(words, monkeypatch, capsys):
    """The text is the user's own: without it, nothing starts."""
    monkeypatch.setattr(sys, "argv", ["ptb_char.py", *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(BENCHMARKS["ptb_char"]), run_name="__main__")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (words[0] if words else "Penn Treebank") in line
