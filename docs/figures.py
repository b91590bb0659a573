"""The tables of README and pages that hold measured numbers, written from what benchmarks wrote: `make figures`.

A table stands between `<!-- figures: NAME -->` and `<!-- end -->`. `make figures` copies the results of full runs from
benchmarks/results to docs/figures, which is kept, and writes every such table anew; a test compares both.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KEPT, NEW = ROOT / "docs" / "figures", ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def result(name: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    return json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))


def table(headings: list[str], rows: list[list[Any]]) -> str:
    """In Markdown, one line per row."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines).replace(
        "| " + " | ".join(["---"] * len(headings)) + " |", "|" + "---|" * len(headings)
    )


def thetas() -> dict[str, str]:
    """Strategy -> where θ ends in influence balancing."""
    return {row[0]: row[1] for row in result("influence_balancing")["rows"]}


def ends(name: str) -> str:
    """Where a strategy ends there, in few digits; a run that leaves its bound ends at once."""
    value = float(thetas()[name])
    return "beyond 10,000" if abs(value) > 1e4 else f"{value:.5g}"


def readme() -> str:
    """Three numbers."""
    longest = max(result("long_sequence")["rows"], key=lambda row: int(row[0].replace(",", "")))
    ratio = next(row[3] for row in result("overhead")["rows"] if row[0] == 64)
    windows = ", ".join(ends(name) for name in ("TBPTT k=10", "TBPTT k=100", "ARTBP α=6 T0=16"))
    return table(
        ["question", "result", "command"],
        [
            [
                "θ after 60,000 steps of that problem, with its optimum at -1/6: windows of 10, of 100, ARTBP(16)",
                windows,
                "`python benchmarks/influence_balancing.py`",
            ],
            [
                f"bytes stored for the exact gradient of {longest[0]} steps of an LSTM, as a fraction of full storage",
                longest[3],
                "`python benchmarks/long_sequence.py`",
            ],
            [
                "time of `unroll`, relative to a hand-written detach loop, LSTM of 256 units, windows of 64",
                f"{float(ratio):.2f}",
                "`python benchmarks/overhead.py`",
            ],
        ],
    )


def storage() -> str:
    """What unroll costs compared with a loop by hand, and what the exact gradient of a long sequence takes."""
    ratios = {row[0]: float(row[3]) for row in result("overhead")["rows"]}
    slots = [row for row in result("long_sequence")["rows"] if row[1] == "1000 slots of 1000"]
    middle, short, longest = slots[:3]  # 10^5, 10^4 and 10^6 steps
    time = float(longest[5]) / float(short[5])
    return table(
        ["question", "result", "command"],
        [
            [
                "time of `unroll`, relative to a hand-written detach loop, LSTM of 256 units, batch 32, k = 64",
                f"{ratios[64]:.2f}",
                "`python benchmarks/overhead.py`",
            ],
            ["the same at k = 20", f"{ratios[20]:.2f}", ""],
            [
                f"exact gradient of {longest[0]} steps, LSTM of 16 units: stored bytes, as a fraction of full storage",
                longest[3],
                "`python benchmarks/long_sequence.py`",
            ],
            [f"the same: time per step, relative to {short[0]} steps", f"{time:.2f}", ""],
            [f"at {middle[0]} steps: time with 1000 slots of 1000 steps, relative to full storage", middle[6], ""],
        ],
    )


def influence_balancing() -> str:
    """θ at the end by strategy."""
    shown = [name for name in thetas() if name.startswith(("TBPTT", "ARTBP", "RTRL", "UORO"))]
    return table([name.removeprefix("TBPTT ") for name in shown], [[ends(name) for name in shown]])


def artbp_text() -> str:
    """Bits per character at equal updates and at equal time."""
    known = result("artbp_text")
    setting = known["details"]["setting"]
    equal = {"updates": f"{setting['updates']:,} updates", "time": f"{setting['seconds']:.0f} s of processor time"}
    return table(
        ["equal", "TBPTT(50)", "ARTBP(50)", "difference, ARTBP's less TBPTT's"],
        [[equal[name], *cells] for name, *cells, _ in known["rows"]],
    )


def online() -> str:
    """NMSE by strategy and series, and the cosine to the exact gradient, with published figures in brackets."""
    columns = {"henon": "Hénon", "mackey-glass": "Mackey-Glass", "lorenz": "Lorenz", "cosine to RTRL": "cosine"}
    found = {(row[1], row[0]): row for row in result("online")["rows"]}

    def cell(name: str, column: str) -> str:
        if (name, column) not in found:
            return "-"
        _, _, value, _, _, published = found[name, column]
        return f"{float(value):.2g}" + (f" ({published})" if published else "")

    names = ["RTRL", "SnAp-1", "SnAp-1 as published", "TBPTT(25)", "UORO", "TBPTT(1, 25)"]
    rows = [[name, *(cell(name, column) for column in columns)] for name in names]
    return table(["", *columns.values()], rows)


def plainly(name: str) -> Callable[[], str]:
    """The benchmark's own table."""

    def write() -> str:
        known = result(name)
        rows = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in known["rows"]]
        return table(known["headings"], rows)

    return write


TABLES: dict[str, Callable[[], str]] = {
    "readme": readme,
    "influence_balancing": influence_balancing,
    "storage": storage,
    "artbp_text": artbp_text,
    "online": online,
    **{name: plainly(name) for name in ("long_sequence", "overhead", "layers", "ctrnn", "step", "update")},
}


def pages() -> list[Path]:
    """Every file that may hold such a table."""
    return [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]


def written(text: str) -> str:
    """A page with its tables made from the kept results; tables with other names stay as they are."""

    def anew(found: re.Match[str]) -> str:
        known = TABLES.get(found[2])
        return found[0] if known is None else found[1] + known() + found[4]

    return BLOCK.sub(anew, text)


def main() -> int:
    """Copy new results, and write the tables."""
    for path in sorted(NEW.glob("*.json")):
        if path.stem in TABLES or path.stem in ("influence_balancing", "long_sequence", "overhead"):
            shutil.copy(path, KEPT / path.name)
            print(f"taken over: {path.name}")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
