"""The layout's rules, enforced from the source: imports go down only, and files stay short."""

import ast
import sys
from pathlib import Path

import pytest

import bptt

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bptt"
LAYERS = [  # lowest first; a module imports from layers strictly below its own
    {"state", "schedules"},
    {"failures"},
    {"checks", "holders", "likeness"},
    {"arguments", "batch", "hidden"},
    {"criteria"},
    {"replay", "results"},
    {"recurrence", "stream", "gates", "axes"},
    {"excluded"},
    {"segment"},
    {"memory", "mixing", "pullback", "purity", "reached", "rewind"},
    {"budget", "finite", "guard", "probing"},
    {"reverse"},
    {"strategies"},
    {"engine"},
    {"unroll"},
    {"spectrum", "comparison"},
    {"jacobians", "costs"},
    {"diagnostics", "compare", "plan"},
]
ENGINE = set().union(*LAYERS)
FREE = {"equations", "models"}  # import nothing of ours
OUTSIDE = {"cli", "data"}  # see `import bptt` alone, beside their own files
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


def module(path: Path) -> list[str]:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path) -> set[tuple[str, ...]]:
    """Every imported module, in full: ("torch", "utils", "_pytree"); `from bptt import x` is ("bptt", "x")."""
    found: set[tuple[str, ...]] = set()
    here = list(path.relative_to(ROOT / "src").with_suffix("").parts) if PACKAGE in path.parents else []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            found |= {(*base, alias.name) for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """The top-level names of the package that a file imports, its own subpackage aside."""
    tops = {name[1] for name in imports(path) if name[0] == "bptt" and len(name) > 1}
    return tops - set(module(path)[:1])


def rank(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def engine_files():
    return [p for p in SOURCES if module(p) and module(p)[0] not in OUTSIDE | {"nn", "kernels"}]


def test_there_is_something_to_check():
    assert len(engine_files()) >= 12
    tops = {module(p)[0] for p in engine_files()}
    assert {"state", "recurrence", "stream", "segment", "memory", "reverse", "strategies", "unroll"} <= tops


def test_every_module_has_a_layer():
    known = ENGINE | FREE | OUTSIDE | {"nn", "kernels"}
    assert {module(p)[0] for p in SOURCES if module(p)} <= known


@pytest.mark.parametrize("path", engine_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    name = module(path)[0]
    used = ours(path)
    if name in FREE or name == "schedules":
        assert not used
        return
    for other in used:
        assert any(other in layer for layer in LAYERS), f"{other} is no module below {name}"
        assert rank(other) < rank(name), f"{name} imports {other}, which lies above it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "schedules").glob("*.py")), ids=lambda p: p.name)
def test_schedules_import_no_torch(path):
    for name in imports(path):
        assert name[0] != "torch"
        assert name[:2] == ("bptt", "schedules") or name[0] != "bptt"


def test_pytrees_are_the_business_of_state_alone():
    for path in SOURCES:
        named = {n.attr for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)}
        uses = "_pytree" in named or any("_pytree" in name for name in imports(path))
        assert uses == (module(path) == ["state"]), path.name


@pytest.mark.parametrize("folder", ["src/bptt/cli", "src/bptt/data", "examples", "benchmarks"])
def test_the_outside_sees_the_public_package_alone(folder):
    """`import bptt`, its public names, and files of the same folder; never a module of the engine."""
    allowed = OUTSIDE | {"nn", "models", *bptt.__all__}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name in imports(path):
            assert name[0] != "bptt" or len(name) == 1 or name[1] in allowed, f"{path.name}: {'.'.join(name)}"


@pytest.mark.parametrize("folder", ["src", "tests", "examples", "benchmarks"])
def test_files_are_short(folder):
    limits = {"src": 400, "tests": 400, "examples": 150, "benchmarks": 300}  # see test_examples.py too
    for path in sorted((ROOT / folder).rglob("*.py")):
        count = len(path.read_text(encoding="utf-8").splitlines())
        limit = 150 if path.parent.name == "strategies" and folder == "src" else limits[folder]
        assert count <= limit, f"{path.relative_to(ROOT)} has {count} lines, more than {limit}"


def called(node: ast.AST) -> str:
    """The plain name that a call calls."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def narrows(test: ast.expr) -> bool:
    """Whether it is `x is not None` or `isinstance(x, ...)`: what an assertion tells a type checker."""
    is_there = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot)
    return is_there or called(test) == "isinstance"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if module(p)[:1] != ["cli"]], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_the_library_neither_prints_nor_asserts_of_users(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert called(node) != "print", f"line {node.lineno} prints"
        if isinstance(node, ast.Assert):
            assert narrows(node.test), f"line {node.lineno} asserts: an error says what was passed and what to do"
            assert node.msg is None, f"line {node.lineno} explains an assertion: raise an error"


def test_no_other_dependency_than_torch():
    for path in engine_files():
        for name in imports(path):
            assert name[0] in {"torch", "bptt"} | sys.stdlib_module_names, f"{path.name} imports {name[0]}"
