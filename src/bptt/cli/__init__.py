"""The command line, one module a command. Everything here uses the public API only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import bptt
from bptt.cli.printing import NO_MEMORY, UserError, no_memory, one_line, shortened
from bptt.cli.ranks import started
from bptt.cli.streams import OutputLost, Streams, lost, tell_terminal

COMMANDS = {
    "train": "train on a text, on numbers in order, or a model of your own, and write a run folder",
    "sample": "let a trained model write text",
    "forecast": "let a model that was trained on numbers say what comes next",
    "export": "write a trained model as ONNX, or in plain torch",
    "compare": "train the same model by several strategies: a report of what each one costs and misses",
    "plan": "predict time and memory of each strategy, and name the one to take",
    "diagnose": "how far back a model's credit reaches, and what truncation drops",
    "verify": "ask of a model of your own what back-propagation through time relies on",
    "explain": "a worked example: every number of the gradients of a small network",
    "doctor": "versions, threads, devices, and what is missing",
}

HELP = f"""\
usage: bptt COMMAND [OPTIONS]

Back-propagation through time: full, truncated and randomised, under any memory budget.

commands:
{chr(10).join(f"  {name:<9}{text}" for name, text in COMMANDS.items())}

  bptt train                                 the default model on Python's own documentation
  bptt train --data book.txt --minutes 10    on your own text
  bptt compare --out report                  what truncation costs, as a page
  bptt diagnose runs/DIR                     how far back its credit reaches
  bptt explain --out explain.html            the equations with numbers, as a page
  bptt COMMAND --help                        all options of a command
  bptt --version"""

GO_ON = {"train", "compare", "diagnose"}
"""Commands that write files, which they do whether anybody reads their output or not."""

EXTRAS = {"tyro", "rich", "matplotlib", "safetensors", "yaml", "numpy", "jinja2", "markupsafe", "latex2mathml"}
"""Import names of the packages that the `cli` extra brings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed, 2 wrong use, 130 interrupted, 141 when nobody reads the output any more.

    Arguments:
        argv: the words after `bptt`; `sys.argv[1:]` by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    with Streams(go_on=name in GO_ON) as streams:
        try:
            code = _command(words)
        except OutputLost:
            code = 0
        except SystemExit:  # --help was shown
            if streams.error() is None:
                raise
            code = 0
        error = streams.error()
        if error is None or code != 0:
            return code
        if isinstance(error, BrokenPipeError):  # `bptt sample runs/x | head` has all it wanted
            return 0 if name in GO_ON else 141
        rest = "; everything else was done" if name in GO_ON else ""
        who = f"bptt {name}" if name in COMMANDS else "bptt"
        return _fail(who, f"standard output cannot be written ({error.strerror}){rest}", 1)


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] == "--version":
        print(f"bptt {bptt.__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        return _fail("bptt", f"no command {name!r}; there are {', '.join(COMMANDS)}. See bptt --help.", 2)
    rank, processes = started()
    if processes > 1 and name != "train":
        return 2 if rank else _fail(f"bptt {name}", "runs in one process; leave torchrun out", 2)
    try:
        return importlib.import_module(f"bptt.cli.{name}").run(words[1:])
    except UserError as error:
        return _fail(f"bptt {name}", str(error), error.code)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        return _fail(f"bptt {name}", f"the package {package} is missing. Run: pip install 'bptt[cli]'", 2)
    except (MemoryError, RuntimeError, OverflowError) as error:
        if not no_memory(error):
            raise
        return _fail(f"bptt {name}", NO_MEMORY, 2)
    except KeyboardInterrupt:
        return _fail(f"bptt {name}", "interrupted", 130)
    except OSError as error:
        what = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"bptt {name}", f"{what}{error.strerror or error}", 1)


def _fail(who: str, message: str, code: int) -> int:
    line = f"{who}: {shortened(one_line(message))}"
    print(line, file=sys.stderr)
    sys.stderr.flush()
    if code == 130 and lost(sys.stderr):  # with `2>&1 | tee`, Ctrl-C ends tee first
        tell_terminal(line)
    return code
