"""The forecaster on numbers in order, as a job."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bptt.cli.files import read_settings, small_text
from bptt.cli.folder import CONFIG, FORECAST, FORECAST_PLOT, SERIES, WEIGHTS, load_weights
from bptt.cli.forecast_plot import forecast_plot
from bptt.cli.history import LOSS
from bptt.cli.jobs.baselines import season_of
from bptt.cli.jobs.forecaster import Forecaster
from bptt.cli.jobs.forecasts import LEVEL, Forecasts, as_json, forecasts, shown
from bptt.cli.jobs.job import Job, Results
from bptt.cli.jobs.series import Numbers, Scale, SeriesSource, Stretch, changes, lanes_of, numbers, scale
from bptt.cli.jobs.texts import named
from bptt.cli.printing import UserError, one_line, user_errors
from bptt.cli.reading import reading
from bptt.cli.room import ADAM, FLOAT, must_have_room, numbers_of_layers, numbers_of_window
from bptt.cli.train_config import HOW_LONG, STEPS, TrainConfig

DTYPES = {"float32": torch.float32, "float64": torch.float64}
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
        numbers = self.source.found
        load_weights(folder.path, self.model, self.stamp)  # the best ones
        found = forecasts(self.model.eval(), self.source, self.season)
        folder.write(FORECAST, json.dumps(as_json(found, numbers, self.season), indent=1) + "\n")
        target = one_line(numbers.targets[0])
        folder.replace(FORECAST_PLOT, lambda path: forecast_plot(found, target, self.name, path))
        title = f"error on the last {len(found.at):,} steps, held out (root mean square)"
        options = ("--data", "NEW.csv")
        return Results(
            title=title,
            table=_paired(found, numbers) if numbers.paired else _by_horizon(found),
            notes=(*_verdict(found, numbers), _interval(found)),
            more=("Forecast:", "bptt forecast", *options),
            plots={FORECAST_PLOT: "forecasts, truth and errors"},
        )


def _by_horizon(found: Forecasts) -> tuple[list[str], list[list[str]]]:
    errors = {"model": found.made, **found.baselines}
    columns = {name: found.error(each) for name, each in errors.items()}
    rows = [[str(found.horizons[i]), *(f"{c[i]:.4g}" for c in columns.values())] for i in shown(found.horizons)]
    return ["steps ahead", *columns], rows


def _paired(found: Forecasts, numbers: Numbers) -> tuple[list[str], list[list[str]]]:
    errors = np.sqrt(np.nanmean((found.made - found.truth) ** 2, (0, 1)))
    each = zip(numbers.targets, errors, found.energy, strict=True)
    return ["target", "error", "of its energy"], [[one_line(n), f"{e:.4g}", f"{share:.2%}"] for n, e, share in each]


def _verdict(found: Forecasts, numbers: Numbers) -> list[str]:
    if numbers.paired:
        return []
    own = found.error(found.made)
    best = np.min([found.error(each) for each in found.baselines.values()], 0)
    behind = found.horizons[own >= best]
    names = " and ".join(found.baselines)
    if not len(behind):
        return [f"Better than {names} at every horizon."]
    told = ", ".join(map(str, behind[:5])) + (", ..." if len(behind) > 5 else "")
    return [f"Not better than {names} at {told} step{'s' * (behind.tolist() != [1])} ahead."]


def _interval(found: Forecasts) -> str:
    return f"The {LEVEL:.0%} interval, of errors on the validation part, holds {found.held:.0%} of these steps."


def numeric_job(config: TrainConfig, device: torch.device) -> NumericJob:
    """The forecaster that `config` names, on a device.

    Raises: UserError for files, columns, horizons or sizes that can't be.
    """
    found = asked(config)
    rows = lanes_of(config.batch, found)
    config = dataclasses.replace(config, batch=rows)
    if all(getattr(config, name) is None for name in HOW_LONG):
        steps = READ // (rows * reading(config).chunk_length)
        config = dataclasses.replace(config, steps=max(FEWEST, min(STEPS, steps)))
    inputs = scale(found.table.values, found.split, f"--data {config.data}")
    targets = scale(found.wanted.values, found.split, f"--targets {config.targets}") if found.paired else inputs
    flat = [name for name, i in zip(found.targets, found.places, strict=True) if targets.constant[i]]
    if flat:
        raise UserError(
            f"--data {config.data}: column {one_line(flat[0])} never changes in the training part, so there is nothing "
            f"to learn. Give the others with --targets"
        )
    dtype = torch.float32 if device.type == "mps" else torch.float64  # which has no other
    source = SeriesSource(found, rows, lambda values: values.to(dtype))
    season = _season(config, found)
    model = _forecaster(config, found, inputs, targets, dtype)
    shape = (config.cell or "", config.hidden or 1, config.layers or 1)
    of = "the targets' variances" if found.paired else "that of persistence on the training part"
    return NumericJob(
        name=named(*shape),
        model=model.to(device),
        loss=model.loss,
        source=source,
        measure=LOSS,
        config=config,
        told=_told(config, found, source, season, inputs.constant),
        facts={"loss": f"mean squared error, in units of {of}"},
        files={SERIES: json.dumps(described(found, season, dtype), indent=1) + "\n"},
        stamp={"series": ",".join(found.targets)},
        keeps_best=True,
        validations=16,
        kept=numbers_of_window(1, rows, *shape, len(model.decoder.bias)),
        seed=config.seed,
        season=season,
    )


def _forecaster(
    config: TrainConfig, found: Numbers, of_inputs: Scale, of_targets: Scale, dtype: torch.dtype
) -> Forecaster:
    """The model with its first weights, and the scales of the training part."""
    cell, hidden, layers = config.cell or "", config.hidden or 1, config.layers or 1
    columns, targets, horizons = len(found.table.columns), len(found.targets), len(found.horizons)
    count = numbers_of_layers(cell, columns, hidden, layers) + (hidden + 1) * targets * horizons
    given = f"--hidden {hidden} --layers {layers}" + f" --horizon {horizons}" * (horizons > 1)
    must_have_room(ADAM * FLOAT * count, given, f"no memory for a model of this size: its {count:,} parameters")
    torch.manual_seed(config.seed)
    with user_errors():
        places = None if found.paired else found.places
        model = Forecaster(columns, places, targets, horizons, cell, hidden, layers, dtype)
    at = list(found.places)
    unit = of_targets.deviation[at][None] if found.paired else changes(found)
    for name, value in (
        ("mean", of_inputs.mean),
        ("deviation", np.where(of_inputs.constant, 1.0, of_inputs.deviation)),
        ("target_mean", of_targets.mean[at]),
        ("unit", np.broadcast_to(np.where(unit > 0, unit, of_targets.deviation[at]), (horizons, targets))),
    ):
        getattr(model, name).copy_(torch.from_numpy(np.array(value)))
    return model


def saved_forecaster(folder: Path) -> tuple[Forecaster, dict[str, Any]]:
    """The trained model of a run on numbers, and what its `series.json` says; its data need not be there.

    Raises: UserError for a folder that is none, or damaged.
    """
    missing = [name for name in (WEIGHTS, CONFIG, SERIES) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is no run on numbers (no {missing[0]}). Give a DIR of bptt train --data SERIES")
    try:
        settings, known = read_settings(folder / CONFIG), json.loads(small_text(folder / SERIES))
        columns, targets = known["columns"], known["targets"]
        places = None if known["paired"] else tuple(columns.index(name) for name in targets)
        shape = (str(settings["cell"]), int(settings["hidden"]), int(settings["layers"]))
        dtype = DTYPES[known["computed_in"]]
        assert known["dtype"] in DTYPES
        model = Forecaster(len(columns), places, len(targets), len(known["horizons"]), *shape, dtype)
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError, UserError) as error:
        told = str(error) if isinstance(error, UserError) else f"{CONFIG} and {SERIES} don't fit"
        raise UserError(f"{folder}: damaged run folder ({told})") from None
    load_weights(folder, model, {"series": ",".join(targets)}, f"{CONFIG} and {SERIES}")
    return model.eval(), known


def asked(config: TrainConfig) -> Numbers:
    """The numbers that the options name.

    Raises: UserError where a table may as well be a text, or numbers may be ids: what is wanted must be said.
    """
    said = config.horizon is not None or config.targets is not None
    if not said and (config.data or "").lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        raise UserError(
            f"--data {config.data}: a table. To forecast its numbers, give --horizon 1, or more; to read it as "
            f"characters, --read-as text"
        )
    found = numbers(config)
    if not said and found.table.values.dtype.kind in "iu":
        raise UserError(
            f"--data {config.data}: whole numbers. To forecast them, give --horizon 1, or more; ids of tokens take a "
            f"model of your own, bptt train my.py:make --data {config.data}"
        )
    return found


def _season(config: TrainConfig, found: Numbers) -> int | None:
    if config.season is None or found.paired:
        return None if found.paired else season_of(found.table.values, found.split, list(found.places))
    if config.season >= found.split:
        raise UserError(f"--season {config.season}: the training part has only {found.split:,} steps; give less")
    return config.season


def _told(
    config: TrainConfig, found: Numbers, source: SeriesSource, season: int | None, constant: np.ndarray
) -> dict[str, str]:
    table = found.table
    columns = f"{len(table.columns)} column{'s' * (len(table.columns) > 1)}"
    of = "" if found.paired or len(found.targets) == len(table.columns) else f" {', '.join(found.targets)}"
    last = found.horizons[-1]
    what = f"{one_line(str(config.targets))}, the same step" if found.paired and not last else f"{last} steps ahead{of}"
    told = {
        "series": f"{one_line(str(config.data))}, {found.steps:,} steps of {columns}",
        "targets": one_line(what if last != 1 else what.replace("1 steps", "1 step")),
        **held_out(source),
        "training": f"{source.rows} lane{'s' * (source.rows > 1)} of {source.steps:,} steps, normalised by mean and "
        "deviation",
    }
    if not found.paired:
        none = "none found; --season names one" if season is None else f"{season} steps"
        told["season"] = none + (" (found)" if config.season is None and season is not None else "")
    notes = [*table.notes, *(found.wanted.notes if found.paired else ())]
    flat = [one_line(name) for name, each in zip(table.columns, constant, strict=True) if each]
    notes += [f"column {name} never changes in the training part: it tells nothing" for name in flat]
    return told | {f"note {i + 1}" if len(notes) > 1 else "note": one_line(note) for i, note in enumerate(notes)}


def held_out(source: SeriesSource) -> dict[str, str]:
    """What is said of the parts that nothing is trained on."""
    chosen, test = source.validation, source.test

    def told(stretch: Stretch, what: str) -> str:
        lanes = f" in {stretch.rows} lanes" if stretch.rows > 1 else ""
        return f"{stretch.rows * stretch.steps:,} steps from step {stretch.origins[0]:,} on{lanes}, {what}"

    return {"validation": told(chosen, "to choose the weights by"), "test": told(test, "to measure them on")}


def described(found: Numbers, season: int | None, dtype: torch.dtype) -> dict[str, Any]:
    """What tells a run's series: as `series.json` holds it."""
    return {
        "columns": list(found.table.columns),
        "targets": list(found.targets),
        "paired": found.paired,
        "horizons": list(found.horizons),
        "season": season,
        "dtype": "float32" if found.table.values.dtype == np.float32 else "float64",
        "computed_in": str(dtype).removeprefix("torch."),
    }
