"""The notebook as a page: its cells as Markdown, with what they printed and drew."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docstrings import NUMBERED, SYMBOL

from bptt.analysis.explanation.report.formula import latex

NOTEBOOK = Path(__file__).parents[1] / "examples" / "learn_bptt.ipynb"


def append_notebook(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx's hook: what stands in notebook.md, then the notebook without its title."""
    if docname == "notebook":
        cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        source[0] += "\n\n".join(part for cell in cells for part in _parts(cell))


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield _markdown(text)
        return
    yield f"```{{code-block}} python\n{text}\n```"
    for output in cell["outputs"]:
        if "text" in output:
            yield f"```{{code-block}} text\n{''.join(output['text'])}```"
        elif "image/png" in output.get("data", {}):
            picture = "".join(output["data"]["image/png"]).strip()
            image = f'<img alt="what the cell above draws" src="data:image/png;base64,{picture}">'
            yield f"```{{raw}} html\n<p>{image}</p>\n```"


def _markdown(text: str) -> str:
    """Indented blocks become equations, and symbols with an index formulas; `code` stays."""
    blocks = []
    for block in re.sub(r"^# .*\n", "", text).split("\n\n"):
        rows = block.split("\n")
        if all(row.startswith("    ") for row in rows if row):
            lines = [latex(NUMBERED.sub("", row.strip())) for row in rows if row.strip()]
            blocks.append("\n\n".join(f"$$ {line} $$" for line in lines))
        else:
            pieces = block.split("`")
            pieces[::2] = [SYMBOL.sub(lambda found: f"${latex(found[1])}$", piece) for piece in pieces[::2]]
            blocks.append("`".join(pieces))
    return "\n\n".join(blocks)
