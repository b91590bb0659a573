"""Forecasts: what is read where, scales, baselines and errors against NumPy's own arithmetic on the whole series."""

import matplotlib
import numpy as np
import pytest
import torch

import bptt
from bptt.data import Table
from bptt.forecast import Errors, Source, forecaster, forecasts, last_season, last_value, scale_of, season_of, series_of
from bptt.models import Forecaster

matplotlib.use("Agg")


def table(steps=3000, seed=0):
    generator, t = np.random.default_rng(seed), np.arange(steps)
    level = 20 + 3 * np.sin(2 * np.pi * t / 24) + 0.3 * generator.normal(size=steps)
    flow = 5 + generator.normal(size=steps).cumsum()
    values = np.stack([level, flow], 1)
    values[generator.random(values.shape) < 0.01] = np.nan
    return Table(values, ("level", "flow"))


def test_scales_are_those_of_the_training_part_with_gaps_left_out():
    values = np.concatenate([table(70_000).values, [[1e9, 1e9]]])  # in two stretches
    found = scale_of(values, 66_000)
    assert found.mean == pytest.approx(np.nanmean(values[:66_000], 0))
    assert found.deviation == pytest.approx(np.nanstd(values[:66_000], 0))
    assert scale_of(np.full((9, 1), 7.0), 9).constant.tolist() == [True]
    values[60_000, 1] = np.inf
    with pytest.raises(ValueError, match="step 60,000 is infinite in column 2"):
        scale_of(values, 10)
    with pytest.raises(ValueError, match="column 1 has no number in the training part"):
        scale_of(np.full((9, 1), np.nan), 9)


@pytest.mark.parametrize("horizon", [1, 5])
def test_every_step_of_what_is_held_out_is_forecast_once_from_the_state_of_the_series(horizon):
    series = series_of(table(), ["flow", "level"], horizon)
    assert (series.split, series.targets, series.places) == (2400, ("flow", "level"), (1, 0))
    torch.manual_seed(0)
    model = forecaster(series, "gru", hidden=6)
    torch.nn.init.normal_(model.decoder.weight, 0, 0.1)
    found = forecasts(model.eval(), Source(series, rows=4))
    values = series.table.values
    at = np.arange(2700, 3000 - horizon)
    assert found.at.tolist() == at.tolist()
    truth = np.stack([values[at + h][:, [1, 0]] for h in series.horizons], 1)
    np.testing.assert_array_equal(found.truth, truth)
    with torch.no_grad():  # from the start of the context on
        made = model(torch.from_numpy(values[2700 - 256 : 3000 - horizon])[:, None])[0][256:, 0]
    np.testing.assert_allclose(found.made, made.numpy(), rtol=1e-5)
    deviation = np.nanstd(values[:2400], 0)[[1, 0]]
    for each, guess in ((found.made, found.made), (found.baselines["persistence"], values[at][:, None, [1, 0]])):
        wanted = np.sqrt(np.nanmean(((guess - truth) / deviation) ** 2, (0, 2)))
        np.testing.assert_allclose(found.error(each), wanted, rtol=1e-6)
    before = np.arange(2400, 2700 - horizon)
    with torch.no_grad():
        made = model(torch.from_numpy(values[2400 - 256 : 2700 - horizon])[:, None])[0][256:, 0].numpy()
    apart = np.stack([values[before + h][:, [1, 0]] for h in series.horizons], 1) - made
    np.testing.assert_allclose(found.low, np.nanquantile(apart, 0.1, 0), rtol=1e-4)


def test_a_forecaster_that_has_learned_nothing_is_persistence_with_a_loss_of_one():
    values = table().values
    values = np.where(np.isnan(values), 20.0, values)
    series = series_of(Table(values, ("level", "flow")), horizon=3)
    model, source = forecaster(series, hidden=3), Source(series, rows=1)
    found = forecasts(model.eval(), source)
    np.testing.assert_allclose(found.made, found.baselines["persistence"])
    loss = bptt.evaluate(model, model.loss, source.stream(500, epochs=1)).mean_loss
    assert loss.item() == pytest.approx(1, rel=0.01)


def test_it_learns_and_says_so():
    torch.manual_seed(0)
    series = series_of(table(), ["level"], horizon=6)
    source, model = Source(series, rows=8), forecaster(series, "gru", hidden=8)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in bptt.unroll(model, model.loss, source.stream(50, epochs=20), strategy=bptt.TruncatedBPTT(25)):
        optimizer.step()
        optimizer.zero_grad()
    found = forecasts(model.eval(), source)
    errors = found.errors()
    assert errors.season == 24
    assert errors.rmse[-1] < 0.5 * errors.baselines["persistence"][-1]
    assert errors.records()[5].keys() == {"horizon", "model", "persistence", "seasonal-naive (24)"}
    assert Errors.from_dict(errors.to_dict()) == errors
    old = {key: value for key, value in errors.to_dict().items() if key != "by_target"}
    assert Errors.from_dict(old).rmse == errors.rmse
    assert "80% interval" in errors.verdict()
    assert 0.6 < errors.interval.held <= 1
    axes = errors.plot()
    assert [line.get_label() for line in axes.lines] == ["model", "persistence", "seasonal-naive (24)"]
    assert [text.get_text() for text in found.plot().get_legend().get_texts()][:1] == ["truth"]


def test_baselines():
    values = np.arange(20.0)[:, None]
    at, horizons = np.array([9, 12]), np.array([1, 4, 7])
    assert last_value(values, at, horizons)[:, :, 0].tolist() == [[9] * 3, [12] * 3]
    for place, made in zip(at, last_season(values, at, horizons, 3)[:, :, 0], strict=True):
        for h, value in zip(horizons, made, strict=True):
            back = next(h - 3 * n for n in range(1, 9) if h - 3 * n <= 0)  # the last one that is known
            assert value == place + back


def test_a_season():
    steps = np.arange(4000)
    noise = np.random.default_rng(0).normal(size=(4000, 1))
    wave = np.sin(2 * np.pi * steps / 24)[:, None]
    assert season_of(wave + noise, 4000, [0]) == 24
    assert season_of(wave + 0.1 * noise.cumsum(0), 4000, [0]) == 24  # hidden by drift
    assert season_of(noise, 4000, [0]) is None
    assert season_of(np.ones((4000, 1)), 4000, [0]) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"targets": ["q"]}, "targets: no column 'q'; there are level, flow"),
        ({"targets": ["flow", "flow"]}, "targets: flow is listed twice"),
        ({"targets": Table(np.zeros((7, 1)), ("x",))}, "targets: has 7 steps, and the inputs 3,000"),
        ({"horizon": 0}, "horizon=0: must be at least 1"),
        ({"horizon": 2000}, "table: 3,000 steps are too few to train on and to hold a fifth of them out for a horizon"),
    ],
)
def test_what_cannot_be_forecast(words, message):
    with pytest.raises(ValueError, match=message):
        series_of(table(), **words)


def test_lanes_and_windows_that_the_data_do_not_have():
    series = series_of(table())
    with pytest.raises(TypeError, match=r"targets='flow': give a list"):
        series_of(table(), "flow")
    with pytest.raises(ValueError, match=r"rows=900: lanes of 2 steps are too short for a horizon of 1"):
        Source(series, rows=900)
    with pytest.raises(ValueError, match=r"steps=599: .* make 2 lanes of only 299 to predict"):
        Source(series).measured(599, 2)
    assert Source(series).measured().inputs.shape == (200, 2, 2)
    with pytest.raises(ValueError, match="no steps"):
        Forecaster(1, None, 1, 1).read(torch.zeros(0, 1, 1))


def test_a_second_table_has_its_own_units():
    inputs = table()
    wanted = Table(np.nan_to_num(inputs.values[:, :1] * 1000 - 5), ("other",))
    series = series_of(inputs, wanted)
    assert (series.paired, series.horizons) == (True, (0,))
    model = forecaster(series, hidden=3)
    assert model.target_mean.item() == pytest.approx(wanted.values[:2400].mean())
    assert model.unit.item() == pytest.approx(wanted.values[:2400].std())
    errors = forecasts(model.eval(), Source(series)).errors()
    assert errors.baselines == {}
    assert errors.table().columns == ("target", "error", "of its energy")
    assert errors.by_target[0] == pytest.approx(errors.rmse[0])
