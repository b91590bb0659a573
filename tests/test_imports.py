"""The layout's rules, enforced from the source: imports go down only, and files stay short."""

import ast
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import bptt

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bptt"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = re.findall(r"^\| `([\w.]+)/?` \|", PAGE.partition("## Layout")[2], re.M)  # the page's table, top to bottom
FREE = {"equations", "runs"}  # import nothing of ours
OUTSIDE = {"cli", "data", "export", "forecast", "models"}  # see `import bptt` alone, beside their own files
PLAIN = [
    "_checkpoint.py",
    *(
        f"strategies/{name}.py"
        for name in ["windows", "base", "laws", "decay", "full", "truncated", "adaptive", "spec"]
    ),
]
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


def room(path: Path) -> str:
    """The row of the table that a file belongs to; "" for the package's own `__init__`."""
    top = path.relative_to(PACKAGE).parts[0]
    return "" if top == "__init__.py" else top


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


def files(name: tuple[str, ...]) -> Path | None:
    """The file of ours that an imported name is, or lies in; None for others and for the package itself."""
    while name[:1] == ("bptt",) and len(name) > 1:
        path = PACKAGE.joinpath(*name[1:])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file in SOURCES:
                return file
        name = name[:-1]
    return None


def ours(path: Path) -> set[Path]:
    """The files of the package that a file imports."""
    return {file for name in imports(path) if (file := files(name)) is not None} - {path}


@cache
def longest(path: Path) -> list[Path]:
    """The longest path of imports that ends in a file, `__init__.py` and `_torch.py` not counted."""
    below = max((longest(other) for other in ours(path)), key=len, default=[])
    return below if path.name in ("__init__.py", "_torch.py") else [*below, path]


def engine_files():
    return [p for p in SOURCES if room(p) not in OUTSIDE | {"", "nn"} and "report" not in p.relative_to(PACKAGE).parts]


def test_the_table_has_a_row_for_every_room():
    assert len(ROOMS) == len(set(ROOMS)) > 20
    assert set(ROOMS) == {room(p) for p in SOURCES} - {""}
    assert len(engine_files()) > 40


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p)], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    used = {room(other) for other in ours(path)} - {room(path)}
    if room(path) in FREE:
        assert not used
    for other in used:
        assert ROOMS.index(other) < ROOMS.index(room(path)), (
            f"{room(path)} imports {other}, which the page has below it"
        )


def test_paths_of_imports_are_short():
    """A change is felt no further than through nine files."""
    deepest = max((longest(path) for path in engine_files()), key=len)
    assert 5 < len(deepest) <= 9, " -> ".join(str(path.relative_to(PACKAGE)) for path in deepest)


def test_no_module_hides_behind_a_function():
    for name in bptt.__all__:
        path = PACKAGE / name
        module = isinstance(getattr(bptt, name), ModuleType)
        assert module == (path.is_dir() or path.with_suffix(".py").exists()), name


@pytest.mark.parametrize("name", PLAIN)
def test_schedules_and_windows_import_no_torch(name):
    for path in (PACKAGE / name, *ours(PACKAGE / name)):
        if path.name != "_errors.py" and path.name != "artbp.py":
            assert all(name[0] != "torch" for name in imports(path)), path.name


def test_pytrees_are_the_business_of_one_file():
    for path in SOURCES:
        named = {n.attr for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)}
        uses = "_pytree" in named or any("_pytree" in name for name in imports(path))
        assert uses == (path.name == "_tree.py"), path.name


def underscored(path: Path) -> dict[str, bool]:
    """Attributes with an underscore, in code or strings: whether each is surely torch's. Not what `self` is given."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    attributes = [(ast.unparse(n), n) for n in nodes if isinstance(n, ast.Attribute)]
    own = {n.attr for text, n in attributes if isinstance(n.ctx, ast.Store) and text == f"self.{n.attr}"}
    named = {n.attr: text.startswith("torch.") for text, n in attributes if n.attr not in own}
    for name in imports(path):
        named |= dict.fromkeys(name[1:], name[0] == "torch")
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
            named |= dict.fromkeys(set(node.value.split(".")) - named.keys(), False)
    return {name: torchs for name, torchs in named.items() if re.match("_[a-zA-Z]", name)}


def test_private_names_of_torch_are_the_business_of_one_file():
    """As far as the sources show it: what the one file names, and what is imported from torch or begins with it."""
    known = underscored(PACKAGE / "_torch.py")
    assert {"_version", "_orig_mod", "_autograd", "_dynamo", "_NormBase", "_post_accumulate_grad_hooks"} < known.keys()
    for path in SOURCES:
        names = {name for name, torchs in underscored(path).items() if torchs or name in known}
        allowed = {"_torch.py": known.keys(), "_tree.py": {"_pytree"}}.get(path.name, set())
        assert names <= allowed, path.name


FOLDERS = [
    *(f"src/bptt/{name}" for name in sorted(OUTSIDE)),
    "src/bptt/analysis/race/report",
    "src/bptt/analysis/explanation",
    "examples",
    "benchmarks",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_outside_sees_the_public_package_alone(folder):
    """`import bptt`, its public names, and files of the same folder; never a module of the engine."""
    allowed = OUTSIDE | {"nn", "runs", *bptt.__all__}
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


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p) != "cli"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_library_neither_prints_nor_asserts_of_users(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert called(node) != "print", f"line {node.lineno} prints"
        if isinstance(node, ast.Assert):
            assert narrows(node.test), f"line {node.lineno} asserts: an error says what was passed and what to do"
            assert node.msg is None, f"line {node.lineno} explains an assertion: raise an error"


def test_no_other_dependency_than_torch():
    """But for plots and pages of results, which import what they need when they are called."""
    for path in engine_files():
        called = {"matplotlib"} if path.name == "shown.py" else set()
        for name in imports(path):
            assert name[0] in {"torch", "bptt"} | called | sys.stdlib_module_names, f"{path.name} imports {name[0]}"
