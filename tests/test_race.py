"""A race of one's own model: each run is that of a loop by hand, and a race that was killed goes on."""

import json
import math

import matplotlib as mpl
import matplotlib.figure
import pytest
import torch
from torch import nn

import bptt

mpl.use("Agg")
LOSS = bptt.per_step(nn.MSELoss())
STRATEGIES = [bptt.FullBPTT(), bptt.TruncatedBPTT(5), bptt.ARTBP(bptt.ConstantLaw(6))]
COMMON = {"budget": 60, "seeds": 2, "draws": 4, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "clip": 0.5}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRU(2, 3), nn.Linear(3, 1)

    def forward(self, x, state=None):
        hidden, state = self.cell(x, state)
        return self.out(hidden), state


def stream(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(20, 4, 2, generator=generator)
        yield bptt.Chunk(x, x.sum(2, keepdim=True).cumsum(0) / 5)


def raced(strategies=STRATEGIES, **changes):
    return bptt.race(Net, LOSS, stream, strategies, **{**COMMON, **changes})


@pytest.fixture(scope="module")
def found():
    return raced()


def by_hand(strategy, seed, steps=60):
    """Losses on the held-out chunk before and after, of a plain loop."""
    torch.manual_seed(seed)
    model = Net()
    optimizer, held = torch.optim.SGD(model.parameters(), lr=0.1), next(stream(10**9))
    losses = []

    def validate():
        with torch.no_grad():
            losses.append(nn.functional.mse_loss(model(held.inputs)[0], held.targets).item())

    validate()
    data, state = stream(seed), None
    length = 20 if strategy == STRATEGIES[0] else 5
    for a in range(0, steps, length):
        chunk = next(data) if a % 20 == 0 else chunk  # noqa: F821
        part = slice(a % 20, a % 20 + length)
        if length == 20:
            state = None  # each sequence from the start
        outputs, state = model(chunk.inputs[part], state)
        nn.functional.mse_loss(outputs, chunk.targets[part]).backward()
        state = state.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    validate()
    return losses


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_is_that_of_a_loop_by_hand(found, strategy, seed):
    run = found.runs[strategy.spec][seed]
    assert [run.points[0].loss, run.last.loss] == pytest.approx(by_hand(strategy, seed), rel=1e-6)
    assert (run.steps, run.updates) == (60, 3 if strategy == STRATEGIES[0] else 12)


def test_gradients_are_those_of_compare(found):
    torch.manual_seed(0)
    model, held = Net(), next(stream(10**9))
    for name, strategy in zip(found.strategies, STRATEGIES, strict=True):
        generator = torch.Generator().manual_seed(0)
        (want,) = bptt.compare(model, LOSS, held, strategies=[strategy], draws=4, generator=generator).entries
        (got,) = found.gradients["start"][name].entries
        assert (got.bias, got.variance, got.cosine) == (want.bias, want.variance, want.cosine)
    losses = {(run.last.loss, name, run.seed) for name, runs in found.runs.items() for run in runs}
    assert found.reference == min(losses)[1:]


def test_as_data_and_back_through_json(found):
    assert bptt.Race.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_it_shows_itself(found):
    assert len(found.records()) == 6
    assert [row["loss"] for row in found.records()[:2]] == [run.last.loss for run in found.runs["full"]]
    assert found._repr_html_().count("<tr>") == 4
    assert "exact gradient: full" in str(found)
    assert "best for equal data: " in found.verdict()
    axes = mpl.figure.Figure().add_subplot()
    assert found.plot(axes) is axes
    assert len(axes.get_legend().get_texts()) == 3


def test_its_page_is_whole(found, tmp_path):
    found.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 9
    assert found.sentences()["best for equal data"].replace("'", "&#39;") in page
    assert "<dt>again</dt>" not in page


def without_times(found):
    """What no clock says."""
    return {
        name: [
            {**vars(run), "seconds": 0, "points": [(p.updates, p.loss, p.training) for p in run.points]} for run in runs
        ]
        for name, runs in found.runs.items()
    }


def test_a_race_that_was_killed_goes_on(found, tmp_path):
    """At every part that it keeps: what was kept isn't made again, and all comes out the same."""
    made = []

    class Killed(BaseException):
        pass

    def build():
        made.append(1)
        if len(made) == limits[0]:
            raise Killed
        return Net()

    keywords = {**COMMON, "folder": tmp_path}
    limits = [3, 5, 5, 5, 5, None]  # two builds come before the first part
    while limits[0] is not None:
        made.clear()
        with pytest.raises(Killed):
            bptt.race(build, LOSS, stream, STRATEGIES, **keywords)
        del limits[0]
    again = bptt.race(build, LOSS, stream, STRATEGIES, **keywords)
    assert without_times(again) == without_times(found)
    made.clear()
    assert bptt.race(build, LOSS, stream, STRATEGIES, **keywords) == again
    assert len(made) == 2  # to see whether it is the same race, and whether an update can be made


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"budget": 80}, "budget 60 steps"),
        ({"clip": None}, "clip 0.5"),
        ({"draws": 5}, "draws 4"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.2)}, "optimizer"),
        ({"validation": [next(stream(3))]}, "loss of the first weights"),
    ],
)
def test_another_race_in_the_folder_is_refused(tmp_path, change, named):
    raced(STRATEGIES[:1], folder=tmp_path)
    with pytest.raises(ValueError, match=f"folder holds another race, with {named}"):
        raced(STRATEGIES[:1], folder=tmp_path, **change)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_part_is_named(tmp_path, text):
    raced(STRATEGIES[:1], folder=tmp_path)
    (tmp_path / "run_full_1.json").write_text(text)
    with pytest.raises(ValueError, match=r"run_full_1 is damaged\. Delete run_full_1\.json to run that part again"):
        raced(STRATEGIES[:1], folder=tmp_path)


def test_a_run_that_leads_nowhere_is_a_result():
    found = raced(STRATEGIES[1:2], optimizer=lambda p: torch.optim.SGD(p, lr=1e30), clip=None)
    assert all(run.diverged for run in found.runs["tbptt:5"])
    assert found.records()[0]["loss"] is None
    assert "diverged: tbptt:5 (2 of 2) runs" in found.verdict()
    assert str(found)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budget": "soon"}, ValueError, "budget='soon' must be a number of steps"),
        ({"budget": 0}, ValueError, "budget=0"),
        ({"budget": 19}, ValueError, "budget=19: full needs at least the 20 steps of a sequence"),
        ({"seeds": 0}, ValueError, "seeds=0"),
        ({"draws": 2}, ValueError, "draws=2"),
        ({"strategies": bptt.FullBPTT()}, TypeError, "must be a list of values"),
        ({"strategies": []}, TypeError, "must be a list of values"),
        ({"strategies": [bptt.FullBPTT()] * 2}, ValueError, "listed twice"),
        ({"stream": stream(0)}, TypeError, "stream is a generator, and every run reads its own"),
        ({"stream": [torch.zeros(3)]}, TypeError, "stream gave a Tensor"),
        ({"validation": []}, ValueError, "validation= is empty"),
        ({"memory": "10B"}, bptt.BudgetError, "no strategy fits. The least that would is"),
        ({"build": Net()}, TypeError, "forward"),
        ({"build": 3}, TypeError, r"race\(build=3\)"),
    ],
)
def test_bad_arguments(change, error, message):
    words = {"build": Net, "loss": LOSS, "stream": stream, "strategies": STRATEGIES[:1], **COMMON, **change}
    with pytest.raises(error, match=message) as raised:
        bptt.race(**words)
    assert "\n" not in str(raised.value)


def test_a_budget_of_time_and_a_list_of_chunks():
    data = [next(stream(0))] * 3
    found = bptt.race(Net, LOSS, data, STRATEGIES[:2], budget="0.01s", draws=3, validation=data[0])
    assert all(run.seconds > 0 and run.updates for runs in found.runs.values() for run in runs)
    assert math.isfinite(found.runs["full"][0].last.loss)
    assert "best for equal data" not in found.verdict()
