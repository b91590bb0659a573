"""The house style of docstrings as reStructuredText.

Indented blocks with numbers at the ends of lines are equations and become math, as does a symbol with an index; other
indented blocks become literal blocks; lines `name: text` become a list; `x` becomes code, or a link if x is a public
name; a line that begins with Returns, Raises, Cost or Source begins a paragraph.
"""

import re
from itertools import pairwise
from typing import Any

import bptt
from bptt.analysis.explanation.report.formula import latex

PUBLIC = {
    name: f"{module.__name__}.{name}"
    for module in (bptt.equations, bptt.nn, bptt)
    for name in module.__all__
    if name not in ("equations", "nn", "init")
}
NAME = r"(?:[a-z_]\w*|[A-Z])(?: \([^)]*\))?"
ITEM = re.compile(rf"({NAME}(?:(?:, | or )(?:{NAME}|\([^)]*\)))*): ")
LABEL = re.compile(r"((?:Cost|Source|Call|Parameters|Returns|Raises)(?=:)|Deviations?(?=[: ]))")
NUMBERED = re.compile(r"\s*\((\d+)\)$")
SYMBOL = re.compile(r"(?<![\w`'{])([A-Za-zα-ωΑ-Ω](?:_\{[^}]*\}|_[A-Za-z0-9]{1,2})ᵀ?)(?!\w)")
SENTENCE = re.compile(r"(?:Returns?|Raises|Yields|One update|Cost:)(?=\s)")


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's hook: rewrite the lines of one docstring in place."""
    lines[:] = converted(lines)


def converted(lines: list[str]) -> list[str]:
    """The lines of a docstring, dedented, as lines of reStructuredText."""
    result: list[str] = []
    for block in "\n".join(lines).strip("\n").split("\n\n"):
        rows = [row for row in block.split("\n") if row.strip()]
        if rows and rows[0] == "Arguments:":
            rows = [row.removeprefix("    ") for row in rows[1:]]
        if not rows or rows[0].startswith(">>>"):
            result += [*rows, ""]
        elif all(row.startswith("    ") for row in rows):
            result += equations(rows) if any(NUMBERED.search(row) for row in rows) else ["::", "", *rows, ""]
        else:
            result += [line for part in parts(rows) for line in (marked(part), "")]
    return result


def equations(rows: list[str]) -> list[str]:
    """A directive with one equation per line."""
    lines = []
    for row in rows:
        number = NUMBERED.search(row)
        lines.append(latex(row[: number.start()].strip()) + rf"\tag{{{number[1]}}}" if number else latex(row.strip()))
    return [".. math::", "   :nowrap:", "", *(f"   {line}" for line in lines), ""]


def parts(rows: list[str]) -> list[str]:
    """The paragraphs and the `name: text` entries of a block, each on one line."""
    texts: list[str] = []
    for row in rows:
        begins = LABEL.match(row) or SENTENCE.match(row) or ITEM.match(row)
        after = texts and ITEM.match(texts[-1])
        if not texts or (texts[-1].endswith((".", ":")) and not row.startswith(" ") and (begins or after)):
            texts.append(row.strip())
        else:
            texts[-1] += " " + row.strip()
    inside = re.compile(rf"(?<=\.) (?={ITEM.pattern}|{SENTENCE.pattern})")
    return [part for text in texts for part in (_split(inside, text) if ITEM.match(text) else [text])]


def _split(pattern: re.Pattern[str], text: str) -> list[str]:
    edges = [0, *(found.end() for found in pattern.finditer(text)), len(text)]
    return [text[a:b].strip() for a, b in pairwise(edges)]


def marked(text: str) -> str:
    """A paragraph with its label or name in bold; a named one is an entry of a list."""
    for pattern, bullet in ((LABEL, ""), (ITEM, "* ")):
        if found := pattern.match(text):
            return f"{bullet}**{inline(found[1])}**{inline(text[found.end(1) :])}"
    return inline(text)


def inline(text: str) -> str:
    """`x` as a link or as code; whatever reStructuredText would take for markup is escaped."""
    pieces = text.split("`")
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            words = SYMBOL.split(piece)
            for j, word in enumerate(words):
                escaped = re.sub(r"(?<!\*)\*(?!\*)|\||_(?=\W|$)|\\", r"\\\g<0>", word)
                words[j] = rf"\ :math:`{latex(word)}`\ " if j % 2 else escaped
            pieces[i] = "".join(words)
        else:
            pieces[i] = f":py:obj:`{piece} <{PUBLIC[piece]}>`" if piece in PUBLIC else f"``{piece}``"
    return "".join(pieces)
