"""`bptt` as each rank of a group runs it: what it said, and what became of it."""

import contextlib
import io
import os
import signal

import pytest
import torch
import torch.distributed as dist

from bptt.cli import main
from support.drawing import quick_savefig


class Died(BaseException):
    """What ends a process at once, without the process."""


def command(folder, words, variables=(), rank=None, update=None, action=None):
    """(exit code, standard output, errors) of `bptt` with these words, in a folder.

    variables: of the environment. rank, update, action: at the optimiser's step of so many there, by signal number, or
    "die", which all do.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr("matplotlib.figure.Figure.savefig", quick_savefig)
        err.fileno = lambda: os.open(os.devnull, os.O_WRONLY)  # for what a handler of signals says
        for name, value in dict(variables).items():
            patch.setenv(name, value)
        if update is not None:
            at_step(patch, rank, update, action)
        try:
            code = main([str(word) for word in words])
        except Died:
            code = None
    return code, out.getvalue(), err.getvalue()


def at_step(patch, rank, update, action):
    step, count = torch.optim.Adam.step, [0]

    def counted(self, *more):
        count[0] += 1
        if count[0] == update:
            if action == "die":
                raise Died
            if dist.get_rank() == rank:
                signal.raise_signal(action)
        return step(self, *more)

    patch.setattr(torch.optim.Adam, "step", counted)
