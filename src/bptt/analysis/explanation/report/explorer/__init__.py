"""The explorer: one page to play with, whose script computes what `bptt.equations` computes."""

import base64
import hashlib
import json
from pathlib import Path

import torch
from markupsafe import Markup
from torch import Tensor

import bptt
from bptt.analysis.explanation.report.formula import display
from bptt.analysis.race.report.templates import templates
from bptt.equations import Network

STEPS, DELAY = 61, 5
_HERE = Path(__file__).parent
_U, _V = (0.8, -0.5), (0.9, 0.6)
_W = ((0.8, -0.9), (0.6, 0.575))
"""Its eigenvalues are complex and of size 1: the determinant is 1."""


def example(radius: float, nonlinearity: str) -> tuple[Network, Tensor, Tensor]:
    """The explorer's network, x (61, 1) and y (61, 1): y_t is the input of five steps ago, zero before there is one."""
    U, W, V = (torch.tensor(rows, dtype=torch.float64) for rows in ([[u] for u in _U], _W, [_V]))
    x = torch.tensor(_inputs(), dtype=torch.float64).unsqueeze(1)
    y = torch.cat([x.new_zeros(DELAY, 1), x[:-DELAY]])
    return Network(U, radius * W, V, nonlinearity=nonlinearity), x, y


def page() -> str:
    """The page, one file: the script and the style are inline, and the page's policy allows these two alone."""
    _, x, y = example(1.0, "identity")
    numbers = {"U": _U, "W0": _W, "V": _V, "x": x.flatten().tolist(), "y": y.flatten().tolist()}
    style = _read("style.css")
    script = "\n".join(_read(f"{part}.js") for part in ("equations", "drawing", "controls"))
    environment = templates(_HERE)
    environment.filters["display"] = display
    return environment.get_template("page.html.j2").render(
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        example=Markup(json.dumps(numbers)),
        pairs=STEPS * (STEPS + 1) // 2,
        version=bptt.__version__,
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _inputs() -> list[float]:
    """Two decimals that look like noise and are the same everywhere."""
    return [(37 * t * t + 11 * t) % 201 / 100 - 1 for t in range(STEPS)]


def _hash(text: str) -> str:
    """The source expression of a content security policy that allows just this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
