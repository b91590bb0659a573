"""The files around the package say the same: versions, licence, and the linter."""

import re
import tomllib

import yaml

import bptt
from support.pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_that_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])
    assert citation["version"] == bptt.__version__
    assert citation["authors"] == PROJECT["authors"]
    assert citation["abstract"]
    assert citation["message"]


def test_pre_commit_runs_the_ruff_of_the_constraints():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert pinned
    assert repo["rev"] == f"v{pinned[1]}"
    assert [hook["id"] for hook in repo["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_changelog_is_of_this_version():
    assert bptt.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_lock_has_the_versions_of_the_constraints():
    """And hashes; torch and what a GPU build of it brings are left to the reader's index."""
    pin = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", flags=re.MULTILINE)
    texts = ((ROOT / file).read_text(encoding="utf-8") for file in ("requirements.lock", "constraints.txt"))
    locked, pinned = ({name.lower().replace("_", "-"): v for name, v in pin.findall(text)} for text in texts)
    assert {"tyro", "rich", "matplotlib", "safetensors", "pyyaml", "numpy", "jinja2", "latex2mathml"} <= set(locked)
    assert {name: locked[name] for name in locked if name in pinned} == {n: pinned[n] for n in pinned if n in locked}
    assert not [name for name in locked if name.startswith(("torch", "nvidia", "cuda", "triton"))]
    assert (ROOT / "requirements.lock").read_text(encoding="utf-8").count("--hash=sha256:") >= len(locked)
