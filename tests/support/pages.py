"""The pages, and what stands in them: fenced blocks, quotations of the source, commands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]


class Block(NamedTuple):
    """A fenced block: the line it starts on, what follows the fence, and its text."""

    line: int
    kind: str
    text: str

    @property
    def quotes(self) -> bool:
        """Whether it shows lines of a file instead of code to run."""
        return self.text.startswith("# src/")


def name_of(path: Path) -> str:
    """A page's name within the repository, to show."""
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(text.count("\n", 0, block.start(2)) + 1, block[1], block[2]) for block in found]


def code(page: Path) -> list[Block]:
    """The python blocks that are run, in order."""
    return [block for block in blocks(page) if block.kind == "python" and not block.quotes]


def printed(page: Path) -> dict[int, str]:
    """What a page says that its python blocks print, by the line that the block begins on."""
    found, last = {}, None
    for block in blocks(page):
        if block.kind == "{code-block} text" and last is not None:
            found[last.line] = block.text
        last = block if block.kind == "python" else None
    return found


def quotations(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(file, consecutive lines) of each stretch that a page quotes; a line "..." parts two of one file.

    After a file's name may stand which of the page's equations its lines compute.
    """
    for block in blocks(page):
        file, lines = "", []
        for line in [*block.text.splitlines(), "..."] if block.quotes else []:
            header = re.fullmatch(r"# (src/[^\s,]+)(?:, equations? .*)?", line)
            if header or line == "...":
                if lines:
                    yield file, lines
                file, lines = header[1] if header else file, []
            else:
                lines.append(line)


def commands(page: Path) -> list[str]:
    """What a page tells to type: lines "$ ..." of console blocks, and indented lines that begin with bptt or make."""
    typed = [line[2:] for block in blocks(page) if block.kind == "console" for line in block.text.splitlines()]
    indented = re.findall(r"^    ((?:bptt|make) .*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"\s+# .*", "", command) for command in (*typed, *indented)]
