"""The tables of README and pages that hold measured numbers, written from what benchmarks wrote: `make figures`.

A table stands between `<!-- figures: NAME -->` and `<!-- end -->`. `make figures` copies the results of full runs from
benchmarks/results to docs/figures, which is kept, and writes every such table anew; a test compares both. Speed depends
on the processor: `make figures OF=zen5` keeps the results of those benchmarks beside the others.
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
PROCESSORS = {"": "Zen 4", "zen5": "Zen 5"}
"""By the folder of results, those on which speed was measured."""
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def result(name: str, of: str = "") -> dict[str, Any]:
    """What a benchmark wrote. of: the processor, a key of PROCESSORS."""
    return json.loads((KEPT / of / f"{name}.json").read_text(encoding="utf-8"))


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


def overhead(k: int) -> str:
    """`unroll`'s time over that of a loop by hand, for windows of k steps, on each processor."""
    found = [f"{float(by_key('overhead', of, 0)[k,][3]):.2f}" for of in PROCESSORS]
    return ", ".join(f"{ratio} ({processor})" for ratio, processor in zip(found, PROCESSORS.values(), strict=True))


def readme() -> str:
    """Three numbers."""
    longest = max(result("long_sequence")["rows"], key=lambda row: int(row[0].replace(",", "")))
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
                overhead(64),
                "`python benchmarks/overhead.py`",
            ],
        ],
    )


def storage() -> str:
    """What unroll costs compared with a loop by hand, and what the exact gradient of a long sequence takes."""
    slots = [row for row in result("long_sequence")["rows"] if row[1] == "1000 slots of 1000"]
    middle, short, longest = slots[:3]  # 10^5, 10^4 and 10^6 steps
    time = float(longest[5]) / float(short[5])
    return table(
        ["question", "result", "command"],
        [
            [
                "time of `unroll`, relative to a hand-written detach loop, LSTM of 256 units, batch 32, k = 64",
                overhead(64),
                "`python benchmarks/overhead.py`",
            ],
            ["the same at k = 20", overhead(20), ""],
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


def by_key(name: str, of: str, *columns: int) -> dict[tuple[Any, ...], list[Any]]:
    """The rows of a result by what stands in some columns, without those that the machine was too busy for."""
    return {tuple(row[i] for i in columns): row for row in result(name, of)["rows"] if "too busy" not in row}


def layers(of: str = "") -> str:
    """How many times torch.nn's speed, and in brackets the best rival's, by shape, length and cell."""
    found = by_key("layers", of, 2, 0, 1)
    shapes, cells, lengths = (list(dict.fromkeys(key[i] for key in found)) for i in range(3))

    def cell(shape: str, name: str) -> str:
        rows = [found.get((shape, name, T)) for T in lengths]
        return ", ".join("-" if row is None else f"{row[6]} ({row[8]})" for row in rows)

    names = [f"{name.upper()}, T = {', '.join(map(str, lengths))}" for name in cells]
    return table(["rows, inputs, units", *names], [[s, *(cell(s, name) for name in cells)] for s in shapes])


def layers_peak() -> str:
    """The share of the processor's peak, of the larger shapes."""
    rows, cells = [], ["rnn", "gru", "lstm"]
    for of, processor in PROCESSORS.items():
        found = by_key("layers", of, 2, 1, 0)
        for shape, T in dict.fromkeys(key[:2] for key in found):
            if int(shape.split(", ")[2]) >= 256 and not shape.startswith("1, "):
                shares = [found[shape, T, cell][10] if (shape, T, cell) in found else "-" for cell in cells]
                rows.append([processor, shape, T, *shares])
    return table(["", "rows, inputs, units", "T", *map(str.upper, cells)], rows)


def ctrnn() -> str:
    """How many times as fast as a loop, with noise; and the RNN, which draws none."""
    rows, forms = [], ["rate", "voltage"]
    for of, processor in PROCESSORS.items():
        found = by_key("ctrnn", of, 1, 0)
        rows += [
            [processor, shape, *(found[shape, form][6] for form in forms), found[shape, forms[0]][7]]
            for shape in dict.fromkeys(key[0] for key in found)
        ]
    return table(["", "steps, rows, inputs, units", *(f"CTRNN, {form}" for form in forms), "RNN"], rows)


def update() -> str:
    """Plain torch's time over ours."""
    found = [by_key("update", of, 0) for of in PROCESSORS]
    return table(["", *PROCESSORS.values()], [[*what, *(each[what][3] for each in found)] for what in found[0]])


def layers_zen5() -> str:
    """The same as `layers`, on another processor."""
    return layers("zen5")


TABLES: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        *(readme, influence_balancing, storage, artbp_text, online),
        *(layers, layers_zen5, layers_peak, ctrnn, update),
    )
}
TAKEN = {"influence_balancing", "long_sequence", "overhead", *TABLES}
"""The benchmarks whose results are kept."""
SPEED = {"layers", "update", "ctrnn", "overhead"}
"""Those that are kept for each processor."""


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
    """Copy new results, and write the tables. The argument, if there is one, is a key of PROCESSORS."""
    of = sys.argv[1] if len(sys.argv) > 1 else ""
    if of not in PROCESSORS:
        print(f"OF={of}: PROCESSORS in docs/figures.py has no such folder.", file=sys.stderr)
        return 2
    for path in sorted(NEW.glob("*.json")):
        if path.stem in (SPEED if of else TAKEN):
            shutil.copy(path, KEPT / of / path.name)
            print(f"taken over: {path.name}")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
