"""The tables of measured numbers in README and pages are what the kept results of benchmarks say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
assert spec is not None
figures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figures)
TABLES = [
    (page, name)
    for page in figures.pages()
    for _, name, *_ in figures.BLOCK.findall(page.read_text(encoding="utf-8"))
    if name in figures.TABLES
]


def test_readme_and_first_page_hold_the_same_numbers():
    assert {(page.name, name) for page, name in TABLES} >= {("README.md", "readme"), ("index.md", "readme")}


@pytest.mark.parametrize(("page", "name"), TABLES, ids=lambda value: getattr(value, "name", value))
def test_a_table_is_what_the_benchmark_wrote(page, name):
    text = page.read_text(encoding="utf-8")
    (shown,) = [body for _, other, body, _ in figures.BLOCK.findall(text) if other == name]
    assert shown == figures.TABLES[name]()


def test_a_kept_result_is_of_a_full_run_and_says_where():
    for path in figures.KEPT.rglob("*.json"):
        known = figures.result(path.stem, "" if path.parent == figures.KEPT else path.parent.name)
        assert known["benchmark"] == path.stem
        assert not known["benchmark"].endswith("_quick")
        assert {"processor", "torch", "threads"} <= known.keys()
