"""What `bptt compare` writes to be looked at: the page, the plots, and the verdict."""

import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from bptt.cli.contest.config import CompareConfig, parse_budget
from bptt.cli.contest.contest import Found
from bptt.cli.contest.runner import Point, Run
from bptt.cli.contest.settings import setting
from bptt.cli.contest.verdict import verdict
from bptt.cli.strategies import parse_strategies

SMALL = ["--hidden", "5", "--batch", "2", "--sequence-length", "20", "--draws", "3", "--seeds", "2", "--budget", "120"]


class Page(HTMLParser):
    """Tags, ids and texts; every element must be closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.texts, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.usefixtures("real_plots")
def test_the_page_needs_nothing_and_holds_no_markup_from_outside(bptt_, folder):
    name = "<script>alert(1)<script>.txt"
    (folder / name).write_text("the quick brown fox jumps over the lazy dog.\n" * 60)
    words = ["--task", "text", "--data", name, "--strategies", "full,random:5,adaptive:0.5", "--out", "out"]
    result = bptt_("compare", *SMALL, *words)
    assert (result.code, result.err) == (0, "")
    assert "The report is out/report.html" in result.out
    text = (folder / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert "characters of <script>alert(1)<script>.txt" in "".join(page.texts)
    assert not re.search(r"https?://(?!www\.w3\.org/)|@import|url\((?!#)|@font-face", text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("figure") == 10
    named = [each for each in page.texts if "random:5" in each and "bptt compare" not in each]
    assert named
    assert all("random:5 (biased)" in each for each in named)
    for plot in ("loss.png", "gradients.png", "windows.png"):
        assert (folder / "out" / plot).read_bytes().startswith(b"\x89PNG")


def made(name, seed, losses, seconds, memory_bytes, diverged=None):
    """A run of a hundred steps with a validation at its start and its end."""
    points = [Point(0, 0, 0.0, losses[0], None, None), Point(10, 100, seconds, losses[1], 1.0, None)]
    return Run(name, seed, points, Counter({10: 10}), [], 10, 100, seconds, 100, memory_bytes, diverged)


def measured(bias, signed, draws=1):
    estimates = {name: [1.0, 1.0, 1.0] for name in ("cosine", "variance")}
    return {"draws": draws, "bias": bias, "signed_bias": signed, **estimates}


def test_the_verdict_is_what_the_numbers_say():
    config = CompareConfig(seeds=2).resolved()
    runs = {
        "full": [made("full", 0, (4.0, 2.0), 4.0, 900), made("full", 1, (4.0, 2.2), 4.0, 900)],
        "tbptt:5": [made("tbptt:5", 0, (4.0, 3.0), 1.0, 100), made("tbptt:5", 1, (4.0, 3.1), 1.0, 100)],
        "artbp:5": [made("artbp:5", 0, (4.0, 1.8), 2.0, 300), made("artbp:5", 1, (4.0, 2.6), 2.0, 300)],
        "tbptt:2": [made("tbptt:2", 0, (4.0, 0.1), 0.5, 200), made("tbptt:2", 1, (4.0, 0.1), 0.5, 200, "at once")],
    }
    biases = {
        "full": measured([1e-7] * 3, [0.0] * 3),
        "tbptt:5": measured([0.3] * 3, [-0.3] * 3),
        "artbp:5": measured([0.05, 0.0, 0.2], [0.01, -0.1, 0.1], draws=60),
        "tbptt:2": measured([0.6] * 3, [-0.6] * 3),
    }
    strategies, gradients = parse_strategies(",".join(runs)), {"start": biases, "end": {}}
    found = Found(config, setting(config), parse_budget("100"), strategies, runs, gradients, runs["full"][0])
    said = verdict(found)
    assert said["exact gradient"] == "full"
    assert said["least biased of the others"] == "artbp:5, whose bias 60 draws can't tell from none"
    assert said["cheapest"] == "tbptt:2 in time (5 s for 1,000 steps), tbptt:5 in memory (100B)"
    # On the straight lines after 1 s: full 3.5 and 3.55, tbptt:5 3 and 3.1, artbp:5 2.9 and 3.3.
    assert said["best at equal time"].startswith("tbptt:5 with loss 3.05 ± 0.07 (within the spread: artbp:5)")
    assert said["best at equal time"].endswith("all after 1.0 s of training")
    assert said["best for equal data"] == "full with loss 2.10 ± 0.14 (within the spread: artbp:5), all after 100 steps"
    assert said["diverged"] == "tbptt:2 (1 of 2) runs"
