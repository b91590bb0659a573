"""The pages build without a warning, name every public thing, and quote the source; commands and notebook run."""

import inspect
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from sphinx.util.inventory import InventoryFile

import bptt
import bptt.data
from bptt.cli import main
from support.browser import CHROMIUM, WHY_NOT, browser
from support.drawing import quick_savefig
from support.own_model import NET
from support.pages import PAGES, ROOT, blocks, commands, name_of, quotations

DOCS = ROOT / "docs"
PUBLIC = {
    "bptt": bptt.__all__,
    "bptt.nn": bptt.nn.__all__,
    "bptt.nn.init": [n for n, f in vars(bptt.nn.init).items() if inspect.isfunction(f) and not n.startswith("_")],
    "bptt.equations": bptt.equations.__all__,
    "bptt.data": bptt.data.__all__,
    "bptt.distributed": bptt.distributed.__all__,
    "bptt.export": bptt.export.__all__,
    "bptt.forecast": bptt.forecast.__all__,
    "bptt.models": bptt.models.__all__,
    "bptt.runs": bptt.runs.__all__,
}
CUT_OFF = """[document.documentElement, ...document.querySelectorAll("article :is(table, math, .equation, img, svg)")]
  .filter((at) => Math.max(at.getBoundingClientRect().right, at.scrollWidth) > innerWidth)
  .map((at) => at.tagName + " " + at.textContent.slice(0, 40))"""
COMMANDS = sorted({command for page in PAGES for command in commands(page)})
QUICK = {
    "train": "--steps 2 --hidden 8 --batch 4 --device cpu --data book.txt",
    "sample": "--length 20",
    "diagnose": "--length 12 --batch 2 --data book.txt",
    "plan": "--hidden 8 --batch 2 --steps 40 --data book.txt --device cpu",
    "compare": "--seeds 1 --draws 3 --budget 1000 --strategies full,tbptt:50",
}
"""Words that make a command a matter of a second; the last one of a flag wins."""
OTHERS = {"train": "--steps 2 --device cpu", "diagnose": "--length 12 --batch 2"}
"""Those of a command on other data than a text: numbers, or a model of one's own."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The pages as HTML; a reference that leads nowhere is a warning, and a warning an error."""
    out = tmp_path_factory.mktemp("html")
    words = [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(out)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out


def test_docstrings_in_the_house_style_become_markup():
    """An equation, entries that go on or share a line, prose after them, symbols, labels, and what would be markup."""
    convert = runpy.run_path(str(DOCS / "docstrings.py"))["converted"]
    text = """\
Say what `unroll` yields.

    c_t = |x_t|          (1)

k1: steps, >= 1. k2: steps, or
    None.
Then x_ and w_{t+1} go on, *so*.
Returns `x`. Cost: T.

>>> 1 + 1
2

Source: me."""
    assert [line for line in convert(text.splitlines()) if line] == [
        "Say what :py:obj:`unroll <bptt.unroll>` yields.",
        ".. math::",
        "   :nowrap:",
        r"   c_{t}=\vert x_{t}\vert \tag{1}",
        "* **k1**: steps, >= 1.",
        "* **k2**: steps, or None.",
        r"Then x\_ and \ :math:`w_{t+1}`\  go on, \*so\*.",
        "Returns ``x``. Cost: T.",
        ">>> 1 + 1",
        "2",
        "**Source**: me.",
    ]


def test_make_builds_as_the_test_does():
    makefile = (ROOT / "Makefile").read_text()
    assert "-m sphinx -E -W --keep-going -q -b html docs docs/_build/html\n" in makefile


def test_every_public_name_is_in_the_reference(built):
    inventory = InventoryFile.loads((built / "objects.inv").read_bytes(), uri="")
    documented = {name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names}
    assert sorted({f"{path}.{name}" for path, names in PUBLIC.items() for name in names} - documented) == []


def test_pages_load_nothing_from_the_network(built):
    pages = list(built.rglob("*.html"))
    assert len(pages) >= len([page for page in PAGES if DOCS in page.parents])
    for page in pages:
        loaded = re.findall(r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"(https?:)?//", page.read_text())
        assert not loaded, page.name


@pytest.mark.deep
@pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)
def test_pages_in_a_browser_say_nothing_ask_for_nothing_and_fit(built, tmp_path):
    """At the width of a desk and of a telephone, light and dark. Code may be scrolled; all else fits."""
    faults = []
    pages = [page for page in built.rglob("*.html") if "_modules" not in page.parts]
    assert len(pages) > 40
    with browser(tmp_path / "profile") as tab:
        for page, width, dark in itertools.product(pages, (1280, 400), (False, True)):
            tab.look(width, dark)
            tab.open(page)
            asked = [address for address in tab.asked if not address.startswith(("file:", "data:"))]
            cut = tab.run(CUT_OFF)
            if tab.said or asked or cut:
                faults.append((page.name, width, dark, tab.said, asked, cut))
    assert faults == []


@pytest.mark.parametrize("page", [page for page in PAGES if any(quotations(page))], ids=name_of)
def test_lines_that_a_page_quotes_stand_in_the_file(page):
    """But for the numbers of equations: a page has its own."""
    for file, lines in quotations(page):
        source = [re.sub(r"  # \(\d\)$", "", line) for line in (ROOT / file).read_text().splitlines()]
        indents = [len(at) - len(at.lstrip()) for at in source]
        wanted = [[" " * indent + line for line in lines] for indent in set(indents)]
        assert any(source[i : i + len(lines)] in wanted for i in range(len(source))), f"{file}:\n" + "\n".join(lines)


def test_the_theory_quotes_what_computes_it():
    quoted = {file for file, _ in quotations(DOCS / "theory.md")}
    assert {f"src/bptt/equations/{name}.py" for name in ("steps", "gradients")} < quoted
    assert {f"src/bptt/strategies/{name}.py" for name in ("truncated", "artbp")} < quoted


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_run(page):
    """Python is run by test_examples.py, commands here; directives belong to Sphinx, and what they show isn't run."""
    assert {block.kind for block in blocks(page)} <= {
        "python", "console", "{toctree}", "{eval-rst}", "{code-block} bash", "{code-block} python", "{code-block} text",
    }  # fmt: skip
    for block in blocks(page):
        if block.kind == "console":
            assert all(line.startswith("$ bptt ") for line in block.text.splitlines())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a text, numbers, a model of one's own, and runs."""
    path = tmp_path_factory.mktemp("trained")
    (path / "book.txt").write_text("the quick brown fox jumps over the lazy dog. The end.\n" * 80)
    words = ["train", *QUICK["train"].split(), "--data", str(path / "book.txt"), "--out", str(path / "runs/first")]
    with pytest.MonkeyPatch.context() as patch:
        quick_plots(patch)
        assert main(words) == 0
        words = ["train", *OTHERS["train"].split(), "--data", "weather", "--out", str(path / "runs/weather")]
        assert main(words) == 0
    shutil.copytree(path / "runs/first", path / "runs/DATE")
    (path / "new.csv").write_text("temperature,dew_point,wind_speed\n" + "50,40,10\n" * 20)
    (path / "net.py").write_text(NET)
    np.save(path / "x.npy", np.random.default_rng(0).normal(size=(2000, 2)).astype(np.float32))
    return path


def quick_plots(patch: pytest.MonkeyPatch) -> None:
    """Small plots: drawing them as they are would take most of the time."""
    patch.setattr("matplotlib.figure.Figure.savefig", quick_savefig)


def deep_if_long(command: str):
    """Comparisons on a task take seconds each; that of the default task stands for them in CI."""
    return pytest.param(command, marks=pytest.mark.deep) if command.startswith("bptt compare --task") else command


@pytest.mark.parametrize("command", [deep_if_long(command) for command in COMMANDS])
def test_command_of_a_page_runs(command, trained, tmp_path, monkeypatch, capsys):
    """As it stands, but on a small text and for a few updates. Of make, the target exists: CI itself is `make test`."""
    program, *words = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    assert program == "bptt"
    folder = Path(shutil.copytree(trained, tmp_path / "here"))
    monkeypatch.chdir(folder)
    quick_plots(monkeypatch)
    for flag in ("--minutes", "--epochs"):  # instead of the steps that are added
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    if "--out" in words:
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    if "--resume" in words:
        words += ["--steps", "3"] * ("--steps" in words)
    elif words[0] != "--help" and "--help" not in words:
        others = "weather" in words or "net.py:make" in words
        words += (OTHERS if others else QUICK).get(words[0], "").split()
    try:
        code = main(words)
    except SystemExit as stop:  # --help
        code = stop.code or 0
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    assert captured.out


def test_there_are_commands():
    assert {"train", "sample", "diagnose", "explain", "doctor"} <= {command.split()[1] for command in COMMANDS}


@pytest.fixture(scope="module")
def notebook():
    """The notebook, which is JSON."""
    path = ROOT / "examples" / "learn_bptt.ipynb"
    assert path.stat().st_size < 500_000
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    """The text of a cell, which may be one string or a list of lines."""
    return "".join(cell["source"])


def test_notebook_is_stored_as_it_ran(notebook):
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", ()) for output in outputs) >= 5


@pytest.mark.deep
def test_notebook_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch, capsys):
    """In one namespace, with its own assertions; blanks stay blank, and the solutions are right."""
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "notebook"}
    with torch.random.fork_rng():
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] == "code":
                exec(compile(source(cell), f"cell {number}", "exec"), namespace)
    pyplot.close("all")
    said = capsys.readouterr().out
    for exercise in range(1, 6):
        assert f"Exercise {exercise}: not answered yet." in said
        assert f"Exercise {exercise}: right." in said
