"""Sphinx: MyST pages, the API from the docstrings; no page needs the network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from docstrings import process
from notebook_page import append_notebook

import bptt
from bptt.analysis import explorer

project = "bptt"
author = "the bptt authors"
copyright = author
version = release = bptt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "mathematics"]
html_math_renderer = "mathml"
exclude_patterns = ["_build"]
nitpicky = True
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]

html_theme = "furo"
html_title = f"bptt {release}"
html_static_path = ["_static"]
html_css_files = ["bptt.css"]
html_show_sphinx = False
highlight_language = "none"
smartquotes = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"
add_module_names = False
toc_object_entries_show_parents = "hide"


def write_explorer(app, exception):
    """The explorer beside the pages, which link to it."""
    if exception is None and app.builder.format == "html":
        (Path(app.outdir) / "play.html").write_text(explorer(), encoding="utf-8")


def setup(app):
    """Docstrings in the house style become reStructuredText; the explorer and the notebook are pages."""
    app.connect("autodoc-process-docstring", process)
    app.connect("build-finished", write_explorer)
    app.connect("source-read", append_notebook)
