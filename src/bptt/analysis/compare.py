"""What each strategy gets and what it costs on one sequence: its gradient against the exact one, time and memory."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bptt import _errors, _stream, _tree
from bptt._checkpoint import Memory
from bptt._guard.guard import repeated, settled
from bptt._influence import check_carried
from bptt._loss import Loss
from bptt._options import Options, check_generator, checked_params, checked_strategy
from bptt._recurrence import Recurrence
from bptt._run import Run
from bptt._snapshot import isolated, no_gradient_yet, parameters_kept
from bptt._stream import Chunk
from bptt._torch import unwrapped
from bptt._tree import Tree, leaves, map_leaves
from bptt._window_loss import PerWindow, WindowLoss, inner
from bptt.analysis.comparison import Comparison
from bptt.analysis.estimates import Compared, Draws
from bptt.strategies import FullBPTT, Strategy
from bptt.strategies.windows import Window

TIMED = 3  # runs of a strategy that draws nothing


def compare(
    model: Recurrence,
    loss: Loss,
    sequence: Any,
    state: Tree = None,
    *,
    strategies: Iterable[Strategy],
    draws: int = 100,
    memory: Memory = None,
    initial_state: Any = None,
    state_batch_dim: Any = None,
    time_dim: int = 0,
    params: Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Comparison:
    """Measure each strategy's gradient of one sequence against the exact one: bias, cosine, variance, and the cost.

        g* = dL/dθ,  L = Σ_t l_t;   g = Σ over the strategy's windows of their gradients at the same θ           (1)
        bias = ‖E g - g*‖ / ‖g*‖,  variance = E ‖g - E g‖² / ‖g*‖²,  for each parameter and all together         (2)

    g* is that of `FullBPTT` under the same `memory`; g is what `backward` with `reduction="sum"` gives. E is over the
    numbers that a strategy draws from `generator`. Every run finds the same buffers and the same random-number states,
    so that a model's noise isn't taken for the strategy's; but calls of other lengths use the noise in another order,
    and dropout then differs between strategies: `model.eval()` compares them alone.

    model, state, memory, initial_state, state_batch_dim, time_dim: as in `unroll`.
    sequence: `Chunk(inputs, targets, is_start, mask)` or a plain tuple, T steps; graphs that it carries are left alone.
    loss: as there; for `per_window` g* is that of L = Σ_w f over each strategy's own windows, and `norm` that of one.
    strategies: a list of values such as `TruncatedBPTT(20)`.
    draws: runs of a strategy that draws random numbers, >= 3; others run three times, for the time alone.
    params: θ, leaves; None is what model and loss register, named as there, those of the loss with "loss." before.
    generator: in its present state it begins the draws of every strategy, and is left in it. None: seeded from torch's
        default one.

    Returns a `Comparison`. Parameters, buffers, `.grad`, modes and random-number states are as before, and hooks that
    wait for an accumulated gradient are not called.
    Raises ValueError or TypeError for bad arguments; NonFiniteLossError.
    Cost: one full run, and `draws` or three runs of each strategy; three float64 numbers a parameter on the CPU.

    >>> import bptt, torch
    >>> a = torch.tensor(0.9, requires_grad=True)
    >>> decay = bptt.scan(lambda x, s: (a * s + x, a * s + x))
    >>> square = lambda outputs, targets: (outputs - targets) ** 2
    >>> data, s0 = (torch.ones(50), torch.zeros(50)), torch.zeros(())
    >>> options = [bptt.TruncatedBPTT(10), bptt.TruncatedBPTT(1, 10), bptt.ARTBP(law=bptt.PolynomialLaw(3, 10))]
    >>> found = bptt.compare(decay, square, data, s0, strategies=options, draws=20, params=[a])
    >>> [round(entry.bias.value, 2) for entry in found.entries[:2]]
    [0.5, 0.25]
    >>> low, high = found.entries[2].signed_bias[1:]
    >>> low < 0 < high
    True

    Source: the relative bias is that of Aicher, Foti & Fox 2019, https://arxiv.org/abs/1905.07473.
    """
    _errors.check_gradient_possible()
    wanted = _strategies(strategies, isinstance(loss, PerWindow))
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 3:
        raise ValueError(f"draws={draws!r} must be a whole number of at least 3, for a variance and its interval.")
    theta = _named(model, inner(loss), params)
    chunk = Chunk(*_stream.checked_chunk(sequence, time_dim))
    chunk = chunk._replace(inputs=_detached(chunk.inputs), targets=_detached(chunk.targets))
    _tree.check_tensors(state, "state")
    start = _detached(state)
    trials = _Trials(
        options=Options.ungraphed(
            model,
            loss,
            start,
            memory=memory,
            initial_state=initial_state,
            state_batch_dim=state_batch_dim,
            time_dim=time_dim,
            params=list(theta.values()),
            generator=(own := _draws_from(generator)),
        ),
        chunk=chunk,
        theta=list(theta.values()),
        tensors=[*theta.values(), *leaves(chunk.inputs), *leaves(start)],
        generator=own,
    )
    for strategy in wanted:
        check_carried(strategy, trials.options)
    trials.look()
    with parameters_kept(model, inner(loss), list(theta.values())):
        with repeated():
            exact = trials.once(FullBPTT())[1]
            goals = [trials.goal(strategy, exact) for strategy in wanted]
        entries = tuple(
            _compared(strategy, trials, goal, list(theta), draws) for strategy, goal in zip(wanted, goals, strict=True)
        )
    squares = [torch.dot(g, g).item() for g in exact]
    return Comparison(
        steps=leaves(chunk.inputs)[0].shape[time_dim],
        norms={name: square**0.5 for name, square in zip(theta, squares, strict=True)},
        norm=sum(squares) ** 0.5,
        entries=entries,
    )


class _Run(NamedTuple):
    """What one run took."""

    seconds: float
    memory_bytes: float
    updates: int
    forward_steps: int
    backward_steps: int


@dataclass(frozen=True)
class _Trials:
    """Runs over one sequence, each from the same buffers and noise; nothing that is the user's changes.

    options: those of `unroll`. theta: whose gradient is taken.
    tensors: where the computation may lie. generator: what strategies draw from, our own.
    """

    options: Options
    chunk: Chunk
    theta: list[Tensor]
    tensors: list[Tensor]
    generator: torch.Generator

    def look(self) -> None:
        """See once that steps and rows aren't taken for one another, apart from what is timed."""
        with self._isolated():
            run = Run(self.options, [self.chunk])
            run.tell_axes_apart(run.start(1).begin)

    def once(self, strategy: Strategy) -> tuple[_Run, list[Tensor]]:
        """The cost of a run, and its gradient: a flat float64 tensor a parameter."""
        with self._isolated(), no_gradient_yet(self.theta):
            self._wait()
            begin = time.perf_counter()
            updates = [
                (update.memory_bytes, update.forward_steps, update.t1 - update.start)
                for _, update in Run(self.options, [self.chunk]).updates(strategy)
            ]
            self._wait()
            seconds = time.perf_counter() - begin
            gradient = [_numbers(p) for p in self.theta]
        held, forward, backward = zip(*updates, strict=True)
        return _Run(seconds, max(held), len(updates), sum(forward), sum(backward)), gradient

    def goal(self, strategy: Strategy, exact: list[Tensor]) -> list[Tensor]:
        """The exact gradient: of the sum over steps, `exact`; of losses by window, that of the strategy's windows."""
        problem, loss = self.options.problem, self.options.problem.loss
        if not isinstance(loss, WindowLoss):
            return exact
        steps = leaves(self.chunk.inputs)[0].shape[problem.time_dim]
        windows = [w for w in strategy.windows(lambda t: int(min(t, steps)), float) if isinstance(w, Window)]
        summed = replace(problem, loss=loss.summed(windows, problem.time_dim))
        return replace(self, options=replace(self.options, problem=summed)).once(FullBPTT())[1]

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        problem = self.options.problem
        with isolated(problem.model, self.tensors), isolated(problem.loss.loss, []):
            yield

    def _wait(self) -> None:
        for device in {p.device for p in self.theta if p.device.type != "cpu"}:
            torch.accelerator.synchronize(device)


def _compared(strategy: Any, trials: _Trials, exact: list[Tensor], names: list[str], draws: int) -> Compared:
    begin = trials.generator.get_state()
    run, gradient = trials.once(strategy)
    drawn = not torch.equal(trials.generator.get_state(), begin)
    runs, found = [run], Draws(exact)
    found.add(gradient)
    for _ in range((draws if drawn else TIMED) - 1):
        with settled():
            run, gradient = trials.once(strategy)
        runs.append(run)
        if drawn:
            found.add(gradient)
    trials.generator.set_state(begin)
    *each, whole = found.deviations()
    return Compared(
        **vars(whole),
        strategy=strategy,
        draws=draws if drawn else 1,
        parameters=dict(zip(names, each, strict=True)),
        seconds=median(run.seconds for run in runs),
        memory_bytes=max(run.memory_bytes for run in runs),
        updates=fmean(run.updates for run in runs),
        forward_steps=fmean(run.forward_steps for run in runs),
        backward_steps=fmean(run.backward_steps for run in runs),
    )


def _numbers(parameter: Tensor) -> Tensor:
    """The gradient as real numbers; zeros where nothing reached the parameter."""
    grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    grad = grad.detach().to_dense()
    return (torch.view_as_real(grad) if grad.is_complex() else grad).flatten().to("cpu", torch.float64)


def _named(model: Any, loss: Any, params: Iterable[Tensor] | None) -> dict[str, Tensor]:
    """θ by name, each tensor once."""
    names: dict[Tensor, str] = {}
    for prefix, module in (("", unwrapped(model)), ("loss.", loss)):
        for name, p in module.named_parameters() if isinstance(module, nn.Module) else ():
            names.setdefault(p, prefix + name)
    given = checked_params(params)
    for i, p in enumerate(given or ()):
        names.setdefault(p, f"params[{i}]")
        if not p.is_leaf:
            raise ValueError(f"params=: entry {i} is computed from other tensors: pass those, as leaves.")
    theta = dict.fromkeys(p for p in names if p.requires_grad) if given is None else dict.fromkeys(given)
    if not theta:
        raise ValueError("neither the model nor the loss registers a parameter that requires a gradient: pass params=.")
    return {names[p]: p for p in theta}


def _strategies(values: Any, by_window: bool) -> list[Strategy]:
    if callable(getattr(values, "windows", None)) and not isinstance(values, type):
        raise TypeError(f"strategies={values!r} is one strategy: put it into a list.")
    if isinstance(values, str | type) or not isinstance(values, Iterable):
        raise TypeError(f"strategies={values!r} must be a list of values such as bptt.TruncatedBPTT(k1=20).")
    wanted = [checked_strategy(value, "sum", by_window) for value in values]
    if not wanted:
        raise ValueError("strategies= is empty: list at least one, such as bptt.TruncatedBPTT(k1=20).")
    return wanted


def _draws_from(generator: torch.Generator | None) -> torch.Generator:
    """A generator of our own in the state of the user's; or one that torch's default one seeds, left as it is."""
    check_generator(generator)
    own = torch.Generator("cpu" if generator is None else generator.device)
    own.set_state(torch.get_rng_state() if generator is None else generator.get_state())
    if generator is None:  # not the very numbers that the model's noise is made of
        own.manual_seed(int(torch.randint(2**62, (), generator=own)))
    return own


def _detached(tree: Tree) -> Tree:
    """Without the graphs that leaves carry, which are not ours to free; leaves of autograd as they are."""
    return map_leaves(lambda leaf: leaf if leaf.grad_fn is None else leaf.detach(), tree)
