"""The forecaster on numbers in order, as a job."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import torch
from cycler import cycler
from matplotlib import rc_context
from matplotlib.figure import Figure

from bptt.analysis.history import LOSS
from bptt.cli.folder import FORECAST, FORECAST_PLOT, SERIES
from bptt.cli.jobs.job import Job, Results
from bptt.cli.jobs.series import SeriesSource, noted, numbers
from bptt.cli.jobs.texts import named
from bptt.cli.plots import BLUE, ORANGE, style
from bptt.cli.printing import UserError, one_line, user_errors
from bptt.cli.reading import reading
from bptt.cli.room import ADAM, FLOAT, must_have_room, numbers_of_layers, numbers_of_window
from bptt.cli.train_config import HOW_LONG, STEPS, TrainConfig
from bptt.cli.trained import fill
from bptt.forecast import Forecasts, Scale, Series, forecaster, forecasts, scale_of, season_of
from bptt.forecast.lanes import lanes_of
from bptt.models import Forecaster
from bptt.runs.files import jsonable

READ, FEWEST = 1 << 24, 100
"""Steps of all lanes that a run reads, and updates that it makes, where nothing is said of how long."""


@dataclasses.dataclass(frozen=True)
class NumericJob(Job):
    """A `Forecaster` on a series.

    season: steps of one; None where there is none.
    """

    season: int | None = None

    def start(self, rows: int) -> Any:
        """Zeros."""
        return self.model.initial_state(rows)  # pyright: ignore[reportCallIssue]

    def results(self, folder: Any) -> Results:
        """Errors by horizon beside the baselines', with a plot."""
        fill(folder.path, self.model, dict(self.stamp))  # the best ones
        found = forecasts(self.model.eval(), self.source, self.season, seek=False)
        errors = found.errors()
        folder.write(FORECAST, json.dumps(jsonable(errors.to_dict()), indent=1) + "\n")
        with rc_context({"axes.prop_cycle": cycler(color=[BLUE, ORANGE])}):
            folder.replace(FORECAST_PLOT, lambda path: _draw(found, self.name).savefig(path))
        table = errors.table()
        return Results(
            title=f"error on the last {errors.steps:,} steps, held out (root mean square)",
            table=([one_line(n) for n in table.columns], [[one_line(cell) for cell in row] for row in table.rows]),
            notes=tuple(errors.verdict().splitlines()),
            more=("Forecast:", "bptt forecast", "--data", "NEW.csv"),
            plots={FORECAST_PLOT: "forecasts, truth and errors"},
        )


def _draw(found: Forecasts, title: str) -> Figure:
    """The end of the held-out data with the forecasts of its first target, and the error over the horizon."""
    several = len(found.horizons) > 1
    figure = Figure(figsize=(9, 7 if several else 4.5), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    above, *below = figure.subplots(2 if several else 1, 1, squeeze=False)[:, 0]
    for axes, each in zip((above, *below), (found, found.errors()), strict=False):
        each.plot(axes)
        style(axes, axes.get_xlabel(), axes.get_ylabel())
        axes.legend(frameon=False, fontsize=9)
    above.set_ylabel(one_line(found.series.targets[0]), parse_math=False)
    above.legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def numeric_job(config: TrainConfig, device: torch.device) -> NumericJob:
    """The forecaster that `config` names, on a device.

    Raises: UserError for files, columns, horizons or sizes that can't be.
    """
    series = asked(config)
    rows = config.batch or lanes_of(series)
    config = dataclasses.replace(config, batch=rows)
    if all(getattr(config, name) is None for name in HOW_LONG):
        steps = READ // (rows * reading(config).chunk_length)
        config = dataclasses.replace(config, steps=max(FEWEST, min(STEPS, steps)))
    with user_errors(prefix=f"--data {config.data}: "):
        inputs = targets = scale_of(series.table.values, series.split)
    if series.paired:
        with user_errors(prefix=f"--targets {config.targets}: "):
            targets = scale_of(series.wanted.values, series.split)
    flat = [name for name, i in zip(series.targets, series.places, strict=True) if targets.constant[i]]
    if flat:
        raise UserError(
            f"--data {config.data}: column {one_line(flat[0])} never changes in the training part, so there is nothing "
            f"to learn. Give the others with --targets"
        )
    dtype = torch.float32 if device.type == "mps" else torch.float64  # which has no other
    source = SeriesSource(series, rows, lambda values: values.to(dtype))
    season = _season(config, series)
    model = _model(config, series, inputs, targets, dtype)
    shape = (config.cell or "", config.hidden or 1, config.layers or 1)
    of = "the targets' variances" if series.paired else "that of persistence on the training part"
    return NumericJob(
        name=named(*shape),
        model=model.to(device),
        loss=model.loss,
        source=source,
        measure=LOSS,
        config=config,
        told=_told(config, source, season, inputs.constant),
        facts={"loss": f"mean squared error, in units of {of}"},
        files={SERIES: json.dumps(described(series, season, dtype), indent=1) + "\n"},
        stamp={"series": ",".join(series.targets)},
        keeps_best=True,
        validations=16,
        kept=numbers_of_window(1, rows, *shape, len(model.decoder.bias)),
        seed=config.seed,
        season=season,
    )


def _model(config: TrainConfig, series: Series, inputs: Scale, targets: Scale, dtype: torch.dtype) -> Forecaster:
    """The model with its first weights, and the scales of the training part."""
    cell, hidden, layers = config.cell or "", config.hidden or 1, config.layers or 1
    columns, outputs, last = len(series.table.columns), len(series.targets), len(series.horizons)
    count = numbers_of_layers(cell, columns, hidden, layers) + (hidden + 1) * outputs * last
    given = f"--hidden {hidden} --layers {layers}" + f" --horizon {last}" * (last > 1)
    must_have_room(ADAM * FLOAT * count, given, f"no memory for a model of this size: its {count:,} parameters")
    torch.manual_seed(config.seed)
    with user_errors():
        return forecaster(series, cell, hidden, layers, inputs=inputs, targets=targets, dtype=dtype)


def asked(config: TrainConfig) -> Series:
    """The numbers that the options name.

    Raises: UserError where a table may as well be a text, or numbers may be ids: what is wanted must be said.
    """
    said = config.horizon is not None or config.targets is not None
    if not said and (config.data or "").lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        raise UserError(
            f"--data {config.data}: a table. To forecast its numbers, give --horizon 1, or more; to read it as "
            f"characters, --read-as text"
        )
    series = numbers(config)
    if not said and series.table.values.dtype.kind in "iu":
        raise UserError(
            f"--data {config.data}: whole numbers. To forecast them, give --horizon 1, or more; ids of tokens take a "
            f"model of your own, bptt train my.py:make --data {config.data}"
        )
    return series


def _season(config: TrainConfig, series: Series) -> int | None:
    if config.season is None or series.paired:
        return None if series.paired else season_of(series.table.values, series.split, list(series.places))
    if config.season >= series.split:
        raise UserError(f"--season {config.season}: the training part has only {series.split:,} steps; give less")
    return config.season


def _told(config: TrainConfig, source: SeriesSource, season: int | None, constant: np.ndarray) -> dict[str, str]:
    series = source.series
    table, last = series.table, series.horizons[-1]
    columns = f"{len(table.columns)} column{'s' * (len(table.columns) > 1)}"
    of = "" if series.paired or len(series.targets) == len(table.columns) else f" {', '.join(series.targets)}"
    if series.paired and not last:
        what = f"{one_line(str(config.targets))}, the same step"
    else:
        what = f"{last} step{'s' * (last != 1)} ahead{of}"
    told = {
        "series": f"{one_line(str(config.data))}, {series.steps:,} steps of {columns}",
        "targets": one_line(what),
        "validation": f"{source.ahead(source.validation)}, to choose the weights by",
        "test": f"{source.ahead(source.test)}, to measure them on",
        "training": f"{source.rows} lane{'s' * (source.rows > 1)} of {source.steps:,} steps, normalised by mean and "
        "deviation",
    }
    if not series.paired:
        none = "none found; --season names one" if season is None else f"{season} steps"
        told["season"] = none + (" (found)" if config.season is None and season is not None else "")
    flat = [one_line(name) for name, each in zip(table.columns, constant, strict=True) if each]
    notes = [*source.notes.values()]
    return told | noted(notes + [f"column {n} never changes in the training part: it tells nothing" for n in flat])


def described(series: Series, season: int | None, dtype: torch.dtype) -> dict[str, Any]:
    """What tells a run's series: as `series.json` holds it."""
    return {
        "columns": list(series.table.columns),
        "targets": list(series.targets),
        "paired": series.paired,
        "horizons": list(series.horizons),
        "season": season,
        "dtype": "float32" if series.table.values.dtype == np.float32 else "float64",
        "computed_in": str(dtype).removeprefix("torch."),
    }
