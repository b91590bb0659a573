"""Results of analyses: records, plain data and back, tables, plots, and verdicts that follow from the numbers."""

import itertools
import json
import math
from dataclasses import replace

import matplotlib as mpl
import matplotlib.figure
import matplotlib.pyplot
import pytest
import torch

import bptt
from bptt.analysis import Shown
from bptt.analysis.estimates import Draws
from bptt.analysis.plain import label

mpl.use("Agg")
MODEL, LOSS = torch.nn.GRU(3, 4), bptt.per_step(torch.nn.MSELoss())
STRATEGIES = [
    bptt.FullBPTT(),
    bptt.TruncatedBPTT(5, 9),
    bptt.ARTBP(bptt.ConstantLaw(6), every=2),
    bptt.AdaptiveTruncatedBPTT(0.3, window=12, k_max=10),
]


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    chunk = torch.randn(20, 2, 3), torch.randn(20, 2, 4)
    return {
        "compare": bptt.compare(MODEL, LOSS, chunk, strategies=STRATEGIES, draws=5, state_batch_dim=1),
        "diagnose": bptt.diagnose(MODEL, LOSS, chunk),
        "plan": bptt.plan(MODEL, LOSS, chunk, steps=200, memory="20KiB"),
        "verify": bptt.verify(MODEL, LOSS, chunk),
    }


KINDS = ["compare", "diagnose", "plan", "verify"]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_data_and_back_through_json(results, kind):
    found: Shown = results[kind]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    again = type(found).from_dict(data)
    assert again.to_dict() == found.to_dict()
    assert str(again) == str(found)
    if kind != "diagnose":  # which holds tensors, and is equal to itself alone
        assert again == found


def test_tensors_come_back_as_they_were(results):
    found = results["diagnose"]
    again = bptt.Diagnosis.from_dict(json.loads(json.dumps(found.to_dict())))
    for name, value in vars(found).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("data", [{}, {"steps": 3}, [], None, {"answers": [{"question": 1}]}])
def test_other_data_is_refused(data):
    with pytest.raises(ValueError, match=r"from_dict: this isn't what Verification.to_dict\(\) gives") as raised:
        bptt.Verification.from_dict(data)
    assert "\n" not in str(raised.value)


def test_a_strategy_that_nothing_could_read_back(results):
    class Own(bptt.Strategy):
        def windows(self, upto, draw, progress=None):
            yield from ()

    found = results["compare"]
    entry = replace(found.entries[0], strategy=Own())
    with pytest.raises(TypeError, match=r"Take records\(\)"):
        replace(found, entries=(entry,)).to_dict()
    assert "Own object" in replace(found, entries=(entry,)).records()[0]["strategy"]


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_flat_rows(results, kind):
    found = results[kind]
    records = found.records()
    plain = (int, float, str, type(None))
    assert all(record.keys() == records[0].keys() for record in records)
    assert all(isinstance(value, plain) for record in records for value in record.values())
    count = {"compare": len(STRATEGIES), "diagnose": 20, "verify": 12, "plan": len(results["plan"].rows)}
    assert len(records) == count[kind]


def test_records_hold_what_was_found(results):
    first, *_, drawn, _ = results["compare"].records()
    entry = results["compare"].entries[2]
    assert (first["strategy"], first["kind"], first["bias"]) == ("full", "exact", 0)
    assert [drawn[f"bias{end}"] for end in ("", "_low", "_high")] == list(entry.bias)
    lags = results["diagnose"].records()
    assert lags[3]["mean"] == results["diagnose"].mean[3].item()
    assert (lags[3]["dropped"], lags[2]["dropped"]) == (results["diagnose"].dropped[4], None)
    assert [row["strategy"] for row in results["plan"].records() if row["best"]] == [results["plan"].best.strategy.spec]


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_table_and_verdict(results, kind):
    page = results[kind]._repr_html_()
    assert page.count("<tr>") == sum(len(table.rows) + 1 for _, table, *_ in results[kind].tables())
    assert all(line.split("<")[0].split("&")[0] in page for line in results[kind].verdict().splitlines())
    assert "<script" not in page


def test_a_diagnosis_says_what_to_take(results):
    found = replace(results["diagnose"], dropped={1: 0.5, 2: 0.05, 4: 0}, windows={1: 0.5, 2: 0.3, 4: 0.09})
    said = "The shortest above to drop less than 10%: tbptt:4, or 2 steps for each loss."
    assert found.verdict().splitlines()[-2:] == [said, "tbptt:K1:K2 gives each loss K2 - K1 + 1 steps or more."]
    grows, none = {1: 2.0, 2: 0.9}, {1: math.nan}
    fast = replace(found, growth_rates=torch.ones(2), dropped=grows, windows=grows)
    assert fast.advice() == ["Credit grows with the lag, so that every truncation above drops much of the gradient."]
    slow = replace(fast, growth_rates=-torch.ones(2))
    assert slow.advice() == ["Every truncation above drops 10% or more; a longer sequence shows longer ones."]
    assert replace(found, dropped=none).advice() == ["The gradient is zero, so there is nothing to drop."]


def test_a_figure_of_a_diagnosis_has_all_of_it(results):
    found, figure = results["diagnose"], mpl.figure.Figure()
    credit, dropped, exponents = found.plot(figure).figure.axes
    shares = {line.get_label(): list(line.get_ydata()) for line in dropped.lines}
    assert list(shares.values()) == [list(found.windows.values()), list(found.dropped.values())]
    assert list(exponents.lines[-2].get_ydata()) == pytest.approx(found.exponents.mean(0).tolist())
    assert list(credit.lines[0].get_ydata()) == found.mean.tolist()
    figure.canvas.draw()


@pytest.mark.parametrize("kind", KINDS)
def test_plots_into_axes_of_ones_own_and_new_ones(results, kind):
    figure = mpl.figure.Figure()
    axes = figure.add_subplot()
    assert results[kind].plot(axes) is axes
    assert axes.lines
    new = results[kind].plot()
    new.figure.canvas.draw()  # labels that can't be drawn would raise
    mpl.pyplot.close(new.figure)


def test_the_plots_points_are_the_biases(results):
    axes = mpl.figure.Figure().add_subplot()
    results["compare"].plot(axes)
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"}
    for row, entry in enumerate(results["compare"].entries):
        assert (entry.bias.value, row) in points


# What a verdict says of gradients whose expectation is known: every pattern of cuts of T steps, each by its chance.

STEPS, CUT = 7, 0.3


def patterns(factor=1.0):
    """(chance, gradient) of each pattern of cuts of s' = .9 s + a: influence is weighted by factor / (1 - p)."""
    for cuts in itertools.product([True, False], repeat=STEPS - 1):
        influence = total = 0.0
        for cut in (True, *cuts):
            influence = 1.0 + (0.0 if cut else 0.9 * influence * factor / (1 - CUT))
            total += influence
        yield math.prod(CUT if cut else 1 - CUT for cut in cuts), total


def exact():
    return sum(sum(0.9**k for k in range(t + 1)) for t in range(STEPS))


def measured(name, gradients, draws=None):
    """A strategy's deviation from the exact gradient, as `compare` would have it from these draws."""
    found = Draws([torch.tensor([exact()], dtype=torch.float64)])
    for gradient in gradients:
        found.add([torch.tensor([gradient], dtype=torch.float64)])
    whole = found.deviations()[-1]
    cost = {"parameters": {}, "seconds": 1.0, "memory_bytes": 1, "updates": 1, "forward_steps": 1, "backward_steps": 1}
    return bptt.Compared(**vars(whole), strategy=name, draws=draws or len(gradients), **cost)


def drawn(count, factor=1.0, seed=0):
    chances, gradients = zip(*patterns(factor), strict=True)
    generator = torch.Generator().manual_seed(seed)
    picked = torch.multinomial(torch.tensor(chances), count, replacement=True, generator=generator)
    return [gradients[i] for i in picked]


def comparison(*entries):
    return bptt.Comparison(STEPS, {}, exact(), entries)


def test_the_patterns_themselves():
    assert sum(chance * gradient for chance, gradient in patterns()) == pytest.approx(exact())
    assert abs(sum(chance * gradient for chance, gradient in patterns(1.1)) / exact() - 1) > 0.03


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_factors_ten_per_cent_off_are_called_biased(factor):
    wrong, right = (measured(bptt.ARTBP(), drawn(3000, each)) for each in (factor, 1.0))
    assert (wrong.kind, right.kind) == ("biased", "unbiased")
    said = comparison(wrong).verdict()
    assert "biased, whatever it says: artbp:50 (" in said
    assert "biased, whatever it says" not in comparison(right).verdict()


def test_fewer_draws_never_make_a_strategy_look_better():
    """Of the same strategy with 10, 100 and 3,000 draws the last is never behind, whichever numbers come up."""
    for seed in range(20):
        few, some, many = (measured(bptt.ARTBP(every=n), drawn(n, seed=seed)) for n in (10, 100, 3000))
        said = comparison(few, some, many).verdict().splitlines()[1]
        assert said.startswith("least biased of the others: undecided between ")
        assert said.split("between ")[1].startswith(label(many.strategy))


def test_undecided_and_decided():
    artbp = measured(bptt.ARTBP(), drawn(3000))
    far, near = (
        measured(bptt.TruncatedBPTT(k), [exact() * share]) for k, share in ((1, 0.5), (3, 1 + artbp.bias.high / 2))
    )
    assert comparison(artbp, far).verdict().splitlines()[1].startswith("least biased of the others: artbp:50, ")
    said = comparison(artbp, far, near).verdict().splitlines()[1]
    assert "undecided between tbptt:3, " in said
    assert "tbptt:1," not in said


def test_exact_ones_are_named_and_not_compared():
    said = comparison(measured(bptt.FullBPTT(), [exact()])).verdict().splitlines()
    assert said[:2] == ["exact gradient: full", "least biased of the others: there is no other"]
