"""The page of `bptt explain`: whole, self-contained, small, and nothing in it from outside is markup."""

import re
from html.parser import HTMLParser

import pytest
import torch

from bptt.cli.config import parse
from bptt.cli.explain import made_example
from bptt.cli.explain_config import ExplainConfig
from support.textbook import autograd, autograd_by_pair

VOID = {"meta", "wbr"}
NASTY = "[/b]\x1b<script>"


class Page(HTMLParser):
    """Tables by caption, links, ids, classes and texts; fails where a tag isn't closed or not opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.shapes, self.texts = [], [], [], [], [], []
        self.tables: dict[str, list[list[str]]] = {}
        self.caption = ""
        assert not re.search(r"<(?![a-zA-Z/!])|&(?!\w+;|#\d+;)", text.split("</style>")[1]), "a bare < or &"
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs), f"an attribute of {tag} is given twice"
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [value for name, value in attrs if name in ("href", "src", "srcset", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "g":
            self.shapes.append(values["class"])
        if tag not in VOID:
            self.open.append(tag)
        if tag == "figcaption":
            self.caption = ""
        elif tag == "table":
            self.rows = self.tables.setdefault(self.caption, [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if "figcaption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def numbers(self, caption):
        """Rows of a table without its labels; None where there is no entry."""
        rows = self.tables[caption][1:]
        return [[float(c.replace("−", "-")) if c else None for c in row[1:]] for row in rows]


@pytest.fixture
def page(bptt_, folder):
    def make_page(*words):
        result = bptt_("explain", *words, "--out", "page.html", "--overwrite")
        assert (result.code, result.err) == (0, "")
        assert result.out.endswith("The page is page.html\n")
        return (folder / "page.html").read_text(encoding="utf-8")

    return make_page


def example(*words):
    """(network, x, y, h0) of these options."""
    config = parse(ExplainConfig, words, "bptt explain")
    made = made_example(config, torch.Generator().manual_seed(config.seed))
    return made.network, made.x, made.y, torch.zeros_like(made.network.W[0])


def agrees(shown, value):
    return torch.allclose(torch.tensor(shown, dtype=torch.float64), value, atol=6e-5, rtol=6e-3)


@pytest.mark.parametrize("words", [(), ("--text", "hello", "--hidden", "3", "--bias"), ("--steps", "6", "--seed", "5")])
def test_numbers_of_the_page_are_those_of_autograd(page, words):
    shown, given = Page(page(*words)), example(*words)
    gradient, terms = autograd(*given), autograd_by_pair(*given)
    for name, value in gradient._asdict().items():
        if value is not None:
            assert agrees(shown.numbers(f"dL/d{name}"), value.view(len(value), -1))
    for name in ("W", "U"):
        norms = getattr(terms, name).flatten(2).norm(dim=-1)
        rows = shown.numbers(f"|term of dL/d{name}|")
        assert len(rows) == len(norms)
        for t, row in enumerate(rows):
            assert row[t + 1 :] == [None] * (len(norms) - t - 1)
            assert agrees(row[: t + 1], norms[t, : t + 1])


def test_every_term_can_be_picked_without_a_script(page):
    text = page()
    shown = Page(text)
    pairs = [(t, k) for t in range(4) for k in range(t + 1)]
    assert {f"t{t}-{k}" for t, k in pairs} <= set(shown.ids)
    assert sorted(shown.links) == sorted(2 * [f"#t{t}-{k}" for t, k in pairs])
    assert "script" not in shown.tags
    for t, k in pairs:
        assert text.count(f'class="panel p{t}-{k}"') == 1
        path = re.search(rf":root:has\(#t{t}-{k}:target\) \.path :is\(([^)]*)\){{color:var\(--path\)", text)[1]
        recurrent = {f".W{j}" for j in range(k + 1, t + 1)} | {f".h{j}" for j in range(k, t + 1)}
        assert set(path.split(",")) == {f".l{t}", f".L{t}", f".o{t}", f".V{t}"} | recurrent
    unless_picked = r":root:not\(:has\(\.anchor:target\)\) \.p(\d-\d)"
    assert re.findall(unless_picked, text) == ["3-1"]
    assert re.findall(unless_picked, page("--term", "2,2")) == ["2-2"]


def test_the_unfolded_network_is_drawn(page):
    shown = Page(page("--steps", "5"))
    for edge in ("U", "W", "V"):
        assert sorted(c for c in shown.shapes if c.startswith(f"edge {edge}")) == sorted(
            2 * [f"edge {edge}{t}" for t in range(5)]
        )
        assert shown.texts.count(edge) >= 10
    assert [text for text in shown.texts if re.fullmatch(r"t = \d", text)] == 2 * [f"t = {t}" for t in range(5)]
    assert shown.shapes.count("node h-1") == 2


def test_the_largest_page_is_self_contained_and_small(page):
    """The largest sizes, with numbers that take the most characters."""
    sizes = ("--steps", 12, "--hidden", 8, "--input", 16, "--output", 16, "--bias")
    text = page(*sizes, "--nonlinearity", "sigmoid", "--loss", "softmax_cross_entropy", "--radius", 0.1)
    assert len(text.encode()) < 1_000_000
    shown = Page(text)
    assert len(shown.ids) == len(set(shown.ids))
    assert {link[1:] for link in shown.links} <= set(shown.ids)
    assert not {"link", "script", "img", "iframe", "object", "embed", "base", "form"} & set(shown.tags)
    assert not re.search(r"https?:|//|@import|url\(|@font-face", text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in text


def test_nothing_from_outside_is_markup_or_control(bptt_, folder, monkeypatch):
    """From a text, from data and from names of files: shown as it is, control characters as escapes."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    (folder / "[").mkdir()  # so that NASTY is a file in a folder
    result = bptt_("explain", "--text", NASTY, "--out", NASTY)
    assert (result.code, result.err) == (0, "")
    text = (folder / NASTY).read_text()
    for shown in (result.out, "".join(Page(text).texts)):
        assert 'that of the text "[/b]\\x1b<script>".' in shown
    assert "The page is [/b]\\x1b<script>\n" in result.out
    assert not re.search("\x1b(?!\\[[0-9;]*m)|\x1b\\[3[0-9]", result.out)
    assert "\x1b" not in text
    assert "<script" not in text


def test_a_file_s_name_is_neither(bptt_, folder, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    (folder / "[").mkdir()
    name = NASTY + "\x1b[31m_a`.csv"
    (folder / name).write_text("1,2\n3,4\n")
    result = bptt_("explain", "--data", name, "--out", "page.html")
    text = (folder / "page.html").read_text()
    for shown in (result.out, "".join(Page(text).texts)):
        assert "read from [/b]\\x1b<script>\\x1b[31m_a`.csv" in shown
    assert "\x1b[31m" not in result.out + text
    assert "<script" not in text
    (folder / name).write_text("[/b]\x1b[31m<script>,2\n")
    result = bptt_("explain", "--data", name)
    assert (result.code, result.out) == (2, "")
    assert "\x1b" not in result.error


@pytest.mark.parametrize("letters", ["_`_`x", "a\u202eb\u2028", "&<>\"'", "\n\t \r-"])
def test_letters_stand_for_themselves(page, letters):
    row = Page(page("--text", letters)).tables["xt and yt"][1][1:]
    escapes = {"\n": "\\n", "\t": "\\t", "\r": "\\r", " ": "␣", "\u202e": "\\u202e", "\u2028": "\\u2028"}
    assert row == [escapes.get(letter, letter) for letter in letters[:-1]]


def test_a_page_is_replaced_only_if_asked_to(bptt_, folder):
    assert bptt_("explain", "--out", "a.html").code == 0
    first = (folder / "a.html").read_text()
    assert bptt_("explain", "--seed", 1, "--out", "a.html").code == 2
    assert (folder / "a.html").read_text() == first
    assert bptt_("explain", "--seed", 1, "--out", "a.html", "--overwrite").code == 0
    assert (folder / "a.html").read_text() != first
    assert [path.name for path in folder.iterdir()] == ["a.html"]
