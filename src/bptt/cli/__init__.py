"""The command line, one module a command. Everything here uses the public API only."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

import bptt
from bptt.cli.printing import NO_MEMORY, UserError, no_memory, one_line, shortened

COMMANDS = {
    "train": "train a character model on a text and write a run folder",
    "sample": "let a trained model write text",
    "compare": "train the same model by several strategies: a report of what each one costs and misses",
    "plan": "predict time and memory of each strategy, and name the one to take",
    "diagnose": "how far back a model's credit reaches, and what truncation drops",
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

EXTRAS = {"tyro", "rich", "matplotlib", "safetensors", "yaml", "numpy", "jinja2", "markupsafe"}
"""Import names of the packages that the `cli` extra brings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed, 2 wrong use, 130 interrupted, 141 when nobody reads the output any more.

    Arguments:
        argv: the words after `bptt`; `sys.argv[1:]` by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows only ASCII shows \\u2014 and goes on
            stream.reconfigure(errors="backslashreplace")
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] == "--version":
        print(f"bptt {bptt.__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        return _fail("bptt", f"no command {name!r}; there are {', '.join(COMMANDS)}. See bptt --help.", 2)
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
    except BrokenPipeError:  # `bptt sample runs/x | head` has all it wanted; nothing may be flushed there any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _fail(who: str, message: str, code: int) -> int:
    print(f"{who}: {shortened(one_line(message))}", file=sys.stderr)
    return code
