"""What `bptt compare` writes to be looked at: the page, the plots, and the verdict."""

import re
from collections import Counter
from html.parser import HTMLParser

import pytest

import bptt
from bptt.analysis.race import Budget, Point, Race, Run

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


def measured(strategy, bias, signed, draws=1):
    """What `compare` would have found for one strategy, its interval [value, low, high] given."""
    rest = {"cosine": bptt.Estimate(1.0, 1.0, 1.0), "variance": bptt.Estimate(1.0, 1.0, 1.0), "parameters": {}}
    cost = dict.fromkeys(("seconds", "memory_bytes", "updates", "forward_steps", "backward_steps"), 1)
    found = bptt.Compared(bptt.Estimate(*bias), bptt.Estimate(*signed), strategy=strategy, draws=draws, **rest, **cost)
    return bptt.Comparison(10, {}, 1.0, (found,))


def test_the_verdict_is_what_the_numbers_say():
    runs = {
        "full": (made("full", 0, (4.0, 2.0), 4.0, 900), made("full", 1, (4.0, 2.2), 4.0, 900)),
        "tbptt:5": (made("tbptt:5", 0, (4.0, 3.0), 1.0, 100), made("tbptt:5", 1, (4.0, 3.1), 1.0, 100)),
        "artbp:5": (made("artbp:5", 0, (4.0, 1.8), 2.0, 300), made("artbp:5", 1, (4.0, 2.6), 2.0, 300)),
        "tbptt:2": (made("tbptt:2", 0, (4.0, 0.1), 0.5, 200), made("tbptt:2", 1, (4.0, 0.1), 0.5, 200, "at once")),
    }
    strategies = {name: bptt.strategies.parse(name) for name in runs}
    biases = {
        "full": measured(strategies["full"], [1e-7] * 3, [0.0] * 3),
        "tbptt:5": measured(strategies["tbptt:5"], [0.3] * 3, [-0.3] * 3),
        "artbp:5": measured(strategies["artbp:5"], [0.05, 0.0, 0.2], [0.01, -0.1, 0.1], draws=60),
        "tbptt:2": measured(strategies["tbptt:2"], [0.6] * 3, [-0.6] * 3),
    }
    known = {"budget": Budget.of(100), "unit": "step", "rows": 2, "steps": 10, "draws": 60, "marks": {}, "facts": {}}
    gradients, ends = {"start": biases, "end": {}}, {"parameter": None, "optimum": None, "reference": ("full", 0)}
    found = Race("", strategies=strategies, runs=runs, gradients=gradients, **known, **ends)
    said = found.sentences()
    assert said["exact gradient"] == "full"
    assert said["least biased of the others"] == "artbp:5, off by at most 20% (60 draws) of the gradient's norm"
    assert said["cheapest"] == "tbptt:2 in time (5 s for 1,000 steps), tbptt:5 in memory (100 B)"
    # On the straight lines after 1 s: full 3.5 and 3.55, tbptt:5 3 and 3.1, artbp:5 2.9 and 3.3.
    assert said["best at equal time"].startswith("tbptt:5 with loss 3.05 ± 0.07 (within the spread: artbp:5)")
    assert said["best at equal time"].endswith("all after 1.0 s of training")
    assert said["best for equal data"] == "full with loss 2.10 ± 0.14 (within the spread: artbp:5), all after 100 steps"
    assert said["diverged"] == "tbptt:2 (1 of 2) runs"
    assert "longest window" not in said
    assert Race.from_dict(found.to_dict()) == found
