"""The calls: `unroll` yields one update per window, `backward` merges them, `evaluate` takes no gradient."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bptt import _errors
from bptt._checkpoint import Memory
from bptt._influence import check_carried
from bptt._loss import Loss
from bptt._options import Options, checked_strategy
from bptt._recurrence import Recurrence
from bptt._results import Evaluation, Update
from bptt._resume import Updates
from bptt._run import Run
from bptt._stream import Chunk, check_no_graph_in, checked_chunk
from bptt._tree import Tree
from bptt.strategies import FullBPTT, Strategy


def unroll(
    model: Recurrence,
    loss: Loss,
    stream: Iterable[Any],
    state: Tree = None,
    *,
    strategy: Strategy,
    memory: Memory = None,
    initial_state: Any = None,
    state_batch_dim: Any = None,
    time_dim: int = 0,
    params: Iterable[Tensor] | None = None,
    reduction: str = "mean",
    clip_cotangent: float | None = None,
    generator: torch.Generator | None = None,
    scale: Any = 1.0,
    group: Any = None,
) -> Updates:
    """Train on a stream: one `Update` per window of the strategy, its gradient added to `.grad`.

        c_t = ∂l_t/∂s_t + w_{t+1} · c_{t+1} · ∂s_{t+1}/∂s_t                               (1)
        dL/dθ = Σ_t c_t · ∂F_t/∂θ                                                         (2)

    Between two updates do what you like to the parameters: no graph outlives a yield. `unroll` neither steps nor zeroes
    anything, and reads no more of the stream than the next update needs.

    model: `(inputs, state) -> (outputs, state)`, time first: a torch.nn layer, a module of that shape, or `scan(step)`.
    loss: `(outputs, targets) -> (T, ...)`, not reduced over time, or `((T, ...), aux)`; see `per_step`. A loss that
        mixes steps goes through `per_window`.
    stream: iterable of `Chunk(inputs, targets, is_start, mask)`, of any lengths, or plain tuples.
    state: pytree of tensors to start from, without a graph; None starts from `initial_state`, or from None with a model
        `(inputs, state=None)`, which is then called with None after resets too. Where single rows reset, the step is
        called from None as well, and these rows are taken from that call, by `state_batch_dim`. None inside the pytree
        is carried as it is.
    strategy: `FullBPTT()`, `TruncatedBPTT(k1, k2)`, `AdaptiveTruncatedBPTT(tolerance)`, `ARTBP(law, every)`.
    memory: None stores a window's graph, as infinity does; "512MiB", bytes or `Checkpoints(slots, segment)` replay
        parts of it. The gradient is the same up to rounding, unless the model draws random numbers or mixes time steps
        in a call. A few short forwards per run, which measure how to keep a budget in bytes, don't count in
        `Update.forward_steps`.
    initial_state: what resets return to: a pytree, or a function that returns one, called afresh for every window that
        uses it (in this way a learned initial state gets its gradient). Default: zeros for torch.nn layers.
    state_batch_dim: the axis of the batch rows in the state, an int or a pytree of ints; needed for resets and
        `clip_cotangent`. Default: 1 for torch.nn layers. None in the pytree, and any 0-d leaf under an int, is a leaf
        without rows, such as a clock: resets of single rows and `clip_cotangent` leave it as it is.
    time_dim: the time axis of inputs, targets, outputs, losses, aux, is_start and mask.
    params: the tensors that get a gradient; default: every leaf that `loss.backward()` would reach.
    reduction: "mean" divides the gradient by the strategy's constant (k1, mean_length, or the stream's steps), "sum"
        by nothing, "valid" by the window's summed weight, averaged over rows: biased for random windows.
    clip_cotangent: a bound, row by row over all leaves of the state, on the norm of the second term of (1), at every
        step. **Makes the gradient biased.** The model is then called step by step.
    generator: the strategy's only source of randomness; None is torch's default one.
    scale: factor on the injected loss gradient: a number, such as 1/n where n updates are accumulated for a step, or
        `scaler.scale` of a GradScaler.
    group: the process group of torch.distributed whose ranks train one model together, each on rows of its own.
        Default: the group of DistributedDataParallel or `fully_shard` if the model is wrapped in one, else this process
        alone. The ranks agree on every window, and on losses and gradients being finite; a probe's answer and the
        divisor of "valid" are those of all rows. Without a wrapper call `bptt.distributed.average_gradients` after each
        update.

    Returns an iterator over one `Update` per window. Between two updates it can be saved, and resumed elsewhere, by
    `state_dict()` and `load_state_dict()`. A rank whose stream has ended gives updates of no steps until all
    have ended.
    Raises ValueError or TypeError at the call for bad arguments, at the chunk for bad data, and NonFiniteLossError or
    NonFiniteGradientError, which name the step, before the update is yielded: `.grad` is then as it was before the
    update. Under a `scale` above 1 a gradient that isn't finite is left to the scaler. An error on one rank is raised
    on all.
    Cost: the strategy's; with k1 = k2 and no budget one forward and one backward call per window. Two synchronisations
    with the device per update. Under `memory=` a parameter's hooks fire once per segment. A group makes three exchanges
    of seven numbers per update, and a wrapper averages gradients once.

    >>> import bptt, torch
    >>> model, loss = torch.nn.GRU(3, 4), bptt.per_step(torch.nn.MSELoss())
    >>> stream = [(torch.zeros(7, 2, 3), torch.zeros(7, 2, 4)), (torch.zeros(6, 2, 3), torch.zeros(6, 2, 4))]
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> for update in bptt.unroll(model, loss, stream, strategy=bptt.TruncatedBPTT(k1=5, k2=8)):
    ...     optimizer.step(); optimizer.zero_grad()
    ...     print(update.start, update.t0, update.t1)
    0 0 5
    2 5 10
    7 10 13

    Source: Werbos 1990; Williams & Peng 1990; Tallec & Ollivier 2017, proposition 1.
    """
    options = Options.ungraphed(
        model,
        loss,
        state,
        initial_state=initial_state,
        state_batch_dim=state_batch_dim,
        time_dim=time_dim,
        memory=memory,
        params=params,
        reduction=reduction,
        clip_cotangent=clip_cotangent,
        generator=generator,
        scale=scale,
        group=group,
    )
    wanted = checked_strategy(strategy, reduction, options.problem.loss.by_window)
    check_carried(wanted, options)
    return Updates(Run(options, stream, check_no_graph_in), wanted)


def backward(
    model: Recurrence,
    loss: Loss,
    chunk: Any,
    state: Tree = None,
    *,
    strategy: Strategy | None = None,
    memory: Memory = None,
    initial_state: Any = None,
    state_batch_dim: Any = None,
    time_dim: int = 0,
    params: Iterable[Tensor] | None = None,
    reduction: str = "mean",
    clip_cotangent: float | None = None,
    generator: torch.Generator | None = None,
    scale: Any = 1.0,
    group: Any = None,
) -> Update:
    """Add the gradient of one finite sequence to `.grad`, by any strategy, at fixed parameters.

    It is `unroll` on one chunk with its updates merged into one, and with two differences: `reduction="mean"` divides
    by the sequence's T whatever the strategy, and "valid" by its summed weight; and if inputs or the state carry a
    graph (an encoder's), their summed cotangent is passed on through it, once, at the end.

    chunk: `Chunk(inputs, targets, is_start, mask)` or a plain tuple. strategy: default `FullBPTT()`.
    The other arguments, errors and costs are those of `unroll`.

    Returns one `Update` with t0 = start = 0 and t1 = T; memory_bytes is the largest of the windows.

    >>> import bptt, torch
    >>> encoder, decoder = torch.nn.Linear(2, 4), torch.nn.GRU(3, 4)
    >>> h0 = encoder(torch.ones(1, 5, 2))
    >>> loss = bptt.per_step(torch.nn.MSELoss())
    >>> update = bptt.backward(decoder, loss, (torch.zeros(6, 5, 3), torch.zeros(6, 5, 4)), h0, memory="1MiB")
    >>> encoder.weight.grad is not None
    True
    """
    _errors.check_gradient_possible()
    given = Chunk(*checked_chunk(chunk, time_dim))
    options = Options.of(
        model,
        loss,
        state,
        initial_state=initial_state,
        state_batch_dim=state_batch_dim,
        time_dim=time_dim,
        memory=memory,
        params=params,
        reduction=reduction,
        clip_cotangent=clip_cotangent,
        generator=generator,
        scale=scale,
        group=group,
    )
    wanted = checked_strategy(FullBPTT() if strategy is None else strategy, "sum", options.problem.loss.by_window)
    check_carried(wanted, options)
    return Run(options, [given]).merged(wanted)


def advance(
    model: Recurrence,
    inputs: Tree,
    state: Tree = None,
    *,
    is_start: Any = None,
    initial_state: Any = None,
    state_batch_dim: Any = None,
    time_dim: int = 0,
) -> Tree:
    """Run some steps without a graph and without a loss, to warm up a state, chunk by chunk.

        s_t = F_t(s_{t-1}),  t = 0 .. T-1                                                 (1)

    inputs: pytree of tensors (T, B, ...). state: the one before the first step; None starts as `unroll` does.
    is_start: rows that start anew, as in `Chunk`. The other arguments are those of `unroll`.

    Returns the last state, detached, in the model's own structure. Buffers and noise move on as in any call.
    Raises ValueError or TypeError as `unroll` does. Cost: one forward per step, the outputs of 256 steps in memory.

    >>> import bptt, torch
    >>> layer = torch.nn.GRU(3, 4)
    >>> warm = bptt.advance(layer, torch.ones(50, 2, 3))
    >>> warm.shape, torch.equal(warm, layer(torch.ones(50, 2, 3))[1])
    (torch.Size([1, 2, 4]), True)
    """
    options = Options.of(
        model, _no_loss, state, initial_state=initial_state, state_batch_dim=state_batch_dim, time_dim=time_dim
    )
    return Run(options, [Chunk(*checked_chunk((inputs, None, is_start), time_dim))]).advance()


def _no_loss(outputs: Tree, targets: Tree) -> Tree:
    return outputs


def evaluate(
    model: Recurrence,
    loss: Loss,
    stream: Iterable[Any],
    state: Tree = None,
    *,
    initial_state: Any = None,
    state_batch_dim: Any = None,
    time_dim: int = 0,
    window: int | None = None,
    group: Any = None,
) -> Evaluation:
    """Compute the loss over a stream without a gradient, with the state carried from chunk to chunk as in `unroll`.

    window: the steps of each window of a `per_window` loss, whose values are added; None is the whole stream.
    group: a process group all of whose ranks call this, each with its own rows: `loss` and `mean_loss` are then taken
        over the rows of all of them, and `steps`, `state` and `aux` are the rank's own. None is this process alone,
        wrapped or not, so that one rank may evaluate alone.
    Other arguments as in `unroll`; `model.eval()` is yours to call. Train/eval mode, random-number states, buffers and
    `.grad` are left as they were. Returns an `Evaluation`; a loss that is not finite is returned as it is.
    Raises ValueError or TypeError as `unroll` does. Cost: one forward per step, one chunk in memory at a time.

    >>> import bptt, torch
    >>> model, loss = torch.nn.LSTM(3, 4), bptt.per_step(torch.nn.MSELoss())
    >>> result = bptt.evaluate(model, loss, [(torch.zeros(5, 2, 3), torch.zeros(5, 2, 4))] * 3)
    >>> result.steps
    15
    """
    options = Options.of(
        model, loss, state, initial_state=initial_state, state_batch_dim=state_batch_dim, time_dim=time_dim, group=group
    )
    if window is not None:
        _errors.check_count(window, "window")
        if not options.problem.loss.by_window:
            raise ValueError(f"window={window} is for losses by per_window: a loss by step has no windows.")
    run = Run(options, stream)
    if group is None:
        return run.evaluate(window)
    with run.ranks.telling():
        return run.evaluate(window)
