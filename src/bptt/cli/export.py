"""`bptt export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from bptt.cli.config import parse
from bptt.cli.folder import MODEL, SERIES
from bptt.cli.printing import UserError, one_line
from bptt.cli.trained import forecaster, text_model
from bptt.export import to_onnx, to_torch
from bptt.models.forecaster import DTYPES
from bptt.runs import replace


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Write a trained model for use without bptt.

    onnx: one file, for any number of steps and rows a call. torch: a module in plain torch, as a file of Python, with
    its weights beside it. Both take inputs and state, and give outputs and state, so that data may come step by step.

    Exit codes: 0 done; 1 something cannot be written; 2 wrong use.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Run folder that `bptt train` wrote."""
    to: Literal["onnx", "torch"]
    """Which form."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Where to: a .onnx file, or a .py file with its weights as .pt. model.onnx or model.py in DIR if not given."""


def run(words: Sequence[str]) -> int:
    """Write the model; the exit code."""
    config = parse(ExportConfig, words, "bptt export")
    suffix = {"onnx": ".onnx", "torch": ".py"}[config.to]
    out = config.out or config.run / f"model{suffix}"
    if out.suffix != suffix:
        raise UserError(f"--out {out}: must end with {suffix}")
    if config.out is not None and out.exists():
        raise UserError(f"--out {out}: exists already. Choose another name")
    if (config.run / MODEL).is_file():
        raise UserError(
            f"{config.run}: its model is your own; its weights are weights.safetensors, for that very module"
        )
    dtype, model = torch.int64, None
    if (config.run / SERIES).is_file():
        model, known = forecaster(config.run)
        dtype = DTYPES[known["dtype"]]
    else:
        model = text_model(config.run)[0]
    try:
        if config.to == "onnx":
            data = to_onnx(model, dtype)
            replace(out, lambda path: path.write_bytes(data))
        else:
            weights = {name: t.detach().clone() for name, t in model.state_dict().items()}
            source = to_torch(model, out.stem)
            replace(out.with_suffix(".pt"), lambda path: torch.save(weights, path))
            replace(out, lambda path: path.write_text(source, encoding="utf-8"))
    except ImportError:
        raise UserError("--to onnx takes the package onnx: pip install 'bptt[export]'") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})", 1) from None
    print(f"{one_line(str(out))}" + (f" and {one_line(str(out.with_suffix('.pt')))}" if config.to == "torch" else ""))
    return 0
