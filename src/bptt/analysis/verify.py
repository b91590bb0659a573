"""What a run relies on, asked on purpose: of a model, a loss and a chunk of data, one line an answer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bptt import _errors, _stream, _torch, _tree
from bptt._guard.guard import settled
from bptt._guard.kept import Kept
from bptt._guard.reached import in_sight
from bptt._loss import Loss
from bptt._options import Options
from bptt._recurrence import Recurrence
from bptt._snapshot import foreign_noise_restored, no_gradient_yet, untouched
from bptt._stream import Chunk
from bptt._tree import Tree
from bptt._window_loss import inner
from bptt.analysis.answers import DEVICE, REST, Answer, Verification
from bptt.analysis.questions import Trial, registered


def verify(
    model: Recurrence,
    loss: Loss,
    chunk: Any,
    state: Tree = None,
    *,
    initial_state: Any = None,
    state_batch_dim: Any = None,
    time_dim: int = 0,
    params: Iterable[Tensor] | None = None,
) -> Verification:
    """Ask of a model, a loss and data what training relies on: twelve questions, one line an answer.

    The calls of this library ask some of these in passing, where a run depends on them; here all are asked, of the
    first steps of a chunk and of its gradient: what its answers say holds for this chunk and these modes.

    model, loss, chunk, state, initial_state, state_batch_dim, time_dim: as in `backward`; graphs are left alone.
    params: the tensors that are to get a gradient; None is all that model and loss register.

    Returns a `Verification`: `.ok`, `.answers`, and as text a line for each question, with what to do where it is no.
    The questions: one device; steps for steps (a layer inside with the batch first); a function of inputs and state
    (nothing kept between calls), twice with noise put back; equal replays, where buffers are put back too; the state
    not changed in place; steps independent of the other steps in their call (a look at the future, a normalisation over
    time, a dependence on where a call begins); rows independent of one another; a loss that is a sum over steps, and
    over rows; something to train; finite losses and gradients; every parameter reached.
    Two things are notes, not noes: dropout, since replays draw the same numbers again, and batch norm in training where
    it mixes rows, since gradients are right all the same, though nothing that is said by row is. Batch norm over the
    steps of a call is a no: with it the gradient depends on memory, resets and chunks. Of a model that has dropout the
    steps are asked with dropout switched off; one that draws numbers otherwise can't be asked.
    Parameters, `.grad`, buffers, attributes, modes and random-number states are as before.

    Raises ValueError or TypeError as `backward` does for bad arguments, and where the model or the loss fails on the
    chunk.
    Cost: ten to thirty calls of at most 32 steps without a graph, a call of the loss for each row, and one gradient of
    the chunk.

    >>> import bptt, torch
    >>> model, loss = torch.nn.GRU(3, 4), bptt.per_step(torch.nn.MSELoss())
    >>> found = bptt.verify(model, loss, (torch.randn(7, 2, 3), torch.randn(7, 2, 4)))
    >>> found.ok
    True
    >>> print(found.answers[2])
    ok              Is the recurrence a function of inputs and state?
    """
    _errors.check_gradient_possible()
    inputs, targets, is_start, mask = _stream.checked_chunk(chunk, time_dim)
    if _tree.leaves(inputs)[0].shape[time_dim] == 0:
        raise ValueError("chunk has no step (T = 0): pass at least one.")
    for tree, name in ((state, "state"), (None if callable(initial_state) else initial_state, "initial_state")):
        _tree.check_tensors(tree, name)
    options = Options.of(
        model,
        loss,
        _tree.detach(state),
        initial_state=initial_state if callable(initial_state) else _tree.detach(initial_state),
        state_batch_dim=state_batch_dim,
        time_dim=time_dim,
        params=params,
        scale=torch.ones(()),  # of which a run doesn't ask whether gradients are finite
    )
    given = Chunk(_tree.detach(inputs), _tree.detach(targets), is_start, mask)
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in registered(_torch.unwrapped(model))):
        raise ValueError(f"verify: {_errors.named(model)} makes its parameters at the first call: call it once before.")
    device, numbers = _device(options, given)
    if not device.ok or not numbers:
        why = "model and data are on several devices." if numbers else "tensors on the meta device hold no numbers."
        return Verification((device, *(Answer(question, None, why) for question in REST)))
    theta = [
        leaf for leaf in in_sight((model, inner(loss), initial_state, options.problem.params), {}) if leaf.requires_grad
    ]
    kept = Kept(_torch.unwrapped(model), inner(loss), initial_state)
    tensors = [*theta, *_tree.leaves(given.inputs), *_tree.leaves(options.state)]
    with untouched(model, inner(loss), tensors, theta), no_gradient_yet(theta), foreign_noise_restored(), settled():
        try:
            return Verification((device, *Trial(options, given, kept).answers()))
        finally:
            kept.restore()
            torch.clear_autocast_cache()


def _device(options: Options, chunk: Chunk) -> tuple[Answer, bool]:
    """The answer, and whether there are numbers to look at."""

    def of(tensors: Iterable[Tensor]) -> set[torch.device]:
        return {t.device for t in tensors if t.dim() or t.device.type != "cpu"}

    model, loss = _torch.unwrapped(options.problem.model), options.problem.loss.loss
    first = options.initial_state if not callable(options.initial_state) else None
    places = {
        name: of(tensors)
        for name, tensors in (
            ("the model", registered(model)),
            ("the loss", registered(loss)),
            ("inputs", _tree.leaves(chunk.inputs)),
            ("targets", _tree.leaves(chunk.targets)),
            ("the state", [*_tree.leaves(options.state), *_tree.leaves(first)]),
        )
    }
    found = {device for devices in places.values() for device in devices}
    numbers = not found or any(device.type != "meta" for device in found)
    apart = len(found) > 1 and (not places["the model"] or not found <= places["the model"])
    if not apart and numbers == all(device.type != "meta" for device in found):
        return Answer(DEVICE, True), numbers
    told = ", ".join(f"{name} on {' and '.join(sorted(map(str, on)))}" for name, on in places.items() if on)
    return Answer(DEVICE, False, f"{told}.", "Move them to one device with .to(device)."), numbers
