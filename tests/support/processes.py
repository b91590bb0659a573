"""Groups of processes that torch.distributed joins, started once and given one function after the other."""

import os
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing import connection, get_context

import pytest

TIMEOUT = 60


class Processes:
    """So many ranks over gloo. Called as `group(function, *arguments)`: what the function returns, rank by rank.

    An exception on any rank fails the test with its traceback, and so do ranks that have not answered after a minute;
    they are killed then, and others started for the next call.
    """

    def __init__(self, size):
        self.size = size
        self._pipes, self._processes = [], []

    def _start(self):
        context = get_context("forkserver")  # which imports once, and forks
        context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "bptt"])
        meeting = os.path.join(tempfile.mkdtemp(), "meeting")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            process = context.Process(target=_serve, args=(theirs, rank, self.size, meeting), daemon=True)
            self._processes.append(process)
            process.start()
            theirs.close()

    def stop(self):
        """End them, at once."""
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes = [], []

    def __call__(self, function, *arguments):
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers, end = {}, time.monotonic() + TIMEOUT
        while len(answers) < self.size:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            for pipe in connection.wait(waiting, max(0.0, end - time.monotonic())) or self._hang(answers):
                try:
                    answers[self._pipes.index(pipe)] = pipe.recv()
                except EOFError:
                    self._hang(answers)
        wrong = [f"rank {rank}:\n{told}" for rank, (fine, told) in sorted(answers.items()) if not fine]
        if wrong:
            self.stop()
            pytest.fail("\n".join(wrong))
        return [answers[rank][1] for rank in range(self.size)]

    def _hang(self, answers):
        silent = sorted(set(range(self.size)) - set(answers))
        told = "\n".join(f"rank {rank}: {answer}" for rank, answer in sorted(answers.items()))
        self.stop()
        pytest.fail(f"ranks {silent} hang or have died; the others: {told or 'none'}")


def _serve(pipe, rank, size, meeting):
    """One rank: what it is sent is called, and what comes of it sent back."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT // 2)
    )
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
