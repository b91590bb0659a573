"""The public names with their call signatures, held as data: whoever adds, drops or changes one changes this table."""

import importlib.resources
import inspect
import re
from types import ModuleType

import pytest

import bptt

PUBLIC = {
    "bptt": """
ARTBP(law=<factory>, every=1, per_row=False, compensate=True)
AdaptiveTruncatedBPTT(tolerance=0.5, k_min=2, k_max=100, probe_every=50, window=100)
Answer(question, ok, detail='', advice='')
BudgetError(message, least, strategy=None)
Carry(kind, order=0, epsilon=0.0)
Checkpoints(slots, segment)
Chunk(inputs, targets, is_start=None, mask=None)
Compared(bias, signed_bias, cosine, variance, strategy, draws, parameters, seconds, memory_bytes, updates,
    forward_steps, backward_steps)
Comparison(steps, norms, norm, entries)
ConstantLaw(mean_length=50)
Credit(norms, sums)
Decision(k, step, estimate, bias, decay, norms=())
Deviation(bias, signed_bias, cosine, variance)
Diagnosis(steps, rows, state_size, norms, mean, quantiles, levels, growth_rates, exponents, singular_values,
    memory_length, fraction, spectral_radius, gradient_norm, dropped, windows)
Estimate(value, low, high)
Evaluation(loss, mean_loss, steps, state, aux)
Explanation(network, x, y, sources, characters, tau, term, law, cuts, drawn)
FullBPTT()
NonFiniteError(message, step)
NonFiniteGradientError(message, step)
NonFiniteLossError(message, step)
Plan(steps, budget, rows)
PlanRow(strategy, memory, gradient, reach, seconds, memory_bytes, forward_steps, fits)
PolynomialLaw(alpha=3, mean_length=50)
Probe(start, stop, losses)
RTRL(k1=1)
Race(title, facts, budget, unit, rows, steps, draws, marks, parameter, optimum, strategies, runs, gradients,
    reference)
SnAp(order=1, k1=1)
Strategy(*args, **kwargs)
TruncatedBPTT(k1, k2=None, burn_in=0)
UORO(k1=1, epsilon=1e-07)
Update(t0, t1, start, loss, steps, aux, forward_steps, memory_bytes, decision)
Verification(answers)
Window(start, first, stop, keep, weights=<factory>, decision=None, progress=None, *, burn_in=0)
advance(model, inputs, state=None, *, is_start=None, initial_state=None, state_batch_dim=None, time_dim=0)
analysis
backward(model, loss, chunk, state=None, *, strategy=None, memory=None, initial_state=None, state_batch_dim=None,
    time_dim=0, params=None, reduction='mean', clip_cotangent=None, generator=None, scale=1.0, group=None)
compare(model, loss, sequence, state=None, *, strategies, draws=100, memory=None, initial_state=None,
    state_batch_dim=None, time_dim=0, params=None, generator=None)
diagnose(model, loss, sequence, state=None, *, initial_state=None, state_batch_dim=None, time_dim=0, max_lag=None,
    exponents=None, discard=None, singular_lags=None, truncations=None, params=None, fraction=0.01, levels=(0.1, 0.5,
    0.9))
equations
evaluate(model, loss, stream, state=None, *, initial_state=None, state_batch_dim=None, time_dim=0, window=None,
    group=None)
explain(network, x, y, sources=('as given, to six digits', 'as given, to six digits'), characters='', *, tau=None,
    law=None, term=None, generator=None)
explicit_state(module)
lyapunov(jacobians, *, exponents=None, discard=0)
nn
per_step(criterion)
per_window(function)
plan(model, loss, chunk, state=None, *, steps=None, memory=None, strategies=None, initial_state=None,
    state_batch_dim=None, time_dim=0)
race(build, loss, stream, strategies, *, budget, seeds=1, validation=None, optimizer=None, clip=None, draws=60,
    memory=None, reduction='mean', initial_state=None, state_batch_dim=None, time_dim=0, folder=None)
scale_gradient(state, w, state_batch_dim=None)
scan(step, time_dim=0)
strategies
unroll(model, loss, stream, state=None, *, strategy, memory=None, initial_state=None, state_batch_dim=None,
    time_dim=0, params=None, reduction='mean', clip_cotangent=None, generator=None, scale=1.0, group=None)
verify(model, loss, chunk, state=None, *, initial_state=None, state_batch_dim=None, time_dim=0, params=None)
""",
    "bptt.analysis": """
Example(network, x, y, sources, characters='')
History(clip=0.0, measure=Measure(unit='character', key='chars', per='bits per character', factor=1.4426950408889634),
    read=<factory>, losses=<factory>, grad_norm=<factory>, validations=<factory>, clipped=0, left_out=0, overflowed=0)
Shown()
Table(columns, rows, words=1)
Titled(title, table, levels=(), chosen=False)
example(x=None, y=None, *, text=None, steps=4, inputs=1, hidden=2, outputs=None, nonlinearity='tanh', loss=None,
    bias=False, radius=0.9, generator=None)
explorer()
ladder(most)
memory_here()
number(value)
share(value)
size(count)
""",
    "bptt.nn": """
CTRNN(input_size, hidden_size, *, alpha, sigma=0.0, nonlinearity='tanh', form='rate', bias=True, learn_alpha=False,
    learn_initial=False, device=None, dtype=None, generator=None)
Dale(signs)
GRU(*args, **kwargs)
LRU(input_size, hidden_size, output_size, *, r_min=0.9, r_max=0.999, max_phase=0.3141592653589793, device=None,
    dtype=None, generator=None)
LSTM(*args, **kwargs)
LinearCrossEntropyLoss(in_features, num_classes, *, bias=False, device=None, dtype=None, reduction='mean', weight=None,
    ignore_index=None, label_smoothing=0.0)
Masked(mask)
RNN(*args, **keywords)
SimpleRNN(input_size, hidden_size, output_size, nonlinearity='identity', bias=False, *, device=None, dtype=None,
    generator=None)
convert(model, back=False)
init
""",
    "bptt.nn.init": """
glorot_(tensor, gain=1.0, *, generator=None)
identity_(tensor, gain=1.0)
orthogonal_(tensor, gain=1.0, *, generator=None)
spectral_radius_(tensor, radius, *, generator=None)
""",
    "bptt.equations": """
ACTIVATIONS
ARTBPPattern(steps, cuts, law, every=1)
Cached(symbol, shape, reads)
Cost(method, products, outer_products, cached)
Gradient(U, W, V, b=None, c=None)
LOSSES
Network(U, W, V, b=None, c=None, nonlinearity='identity', loss='squared_error')
Trace(network, x, y, h_before, a, h, o, l)
artbp_gradient(trace, pattern)
costs(network, steps)
forward(network, x, y, h0=None)
full_weights(steps)
gradient_by_double_sum(trace, weights=None)
gradient_by_recursion(trace, boundaries=None)
jacobian(trace, t, k)
lag_term(trace, lag)
lag_terms(trace)
pair_term(trace, t, k)
pair_terms(trace)
pair_weights(boundaries)
softmax_cross_entropy(o, y)
squared_error(o, y)
state_cotangents(trace)
step_jacobian(trace, t)
subsequence_boundaries(steps, length)
subsequence_gradient(trace, length)
subsequence_weights(steps, length)
truncated_gradient(trace, tau)
truncated_weights(steps, tau)
""",
    "bptt.data": """
Characters(text, rows)
Lanes(inputs, batch, length, *, targets=None, horizon=None, epochs=1, missing=False)
PYTHON_DOCS
Prefetch(stream, ahead=2)
Table(values, columns, times=None, notes=())
Vocabulary(characters)
WEATHER
chunks(lanes, length, epochs=1)
continuous(stream)
lanes(series, batch)
load_series(path, *, columns=None)
load_text(source)
observed(targets)
pack(inputs, targets, batch=None)
split(ids, part=10)
tasks
""",
    "bptt.data.tasks": """
Adding(length=100)
BernoulliAdd(t1=3, t2=8)
CopyMemory(delay=100, length=10, symbols=8)
DelayedCopy(delay=10, symbols=4)
Influence(matrix, effect)
InfluenceBalancing(size=23, positive=10)
Task()
""",
    "bptt.export": """
to_onnx(model, dtype=None)
to_torch(model, name='model')
""",
    "bptt.forecast": """
Errors(targets, horizons, steps, rmse, baselines, season, energy_left, interval, by_target)
Forecasts(series, at, made, truth, scale, baselines, low, high, held, season)
Interval(level, low, high, held)
Scale(mean, deviation)
Series(table, wanted, places, horizons, split)
Source(series, rows=None, convert=None, axis=True, flat=False)
forecaster(series, cell='lstm', hidden=64, layers=1, *, inputs=None, targets=None, dtype=torch.float64)
forecasts(model, source, season=None, *, seek=True)
last_season(values, at, horizons, season)
last_value(values, at, horizons)
scale_of(values, split)
season_of(values, split, places)
series_of(table, targets=None, horizon=None, *, each=True)
""",
    "bptt.runs": """
DamagedError(message, damaged)
Events(path, began=None)
InUseError(folder, owner)
Interrupt(most=<class 'int'>, tell=None)
Lines(path, mode)
Lock(folder, who='a process')
Snapshot(step, state, damaged)
Snapshots(folder, kept=2)
load_weights(path, model, stamp=None, of='the model')
random_state(device='cpu')
replace(target, write)
save_weights(path, model, stamp=None)
set_random_state(state, device='cpu')
""",
    "bptt.distributed": """
average_gradients(params, group=None)
gather_state(state, state_batch_dim=1, group=None)
narrow_state(state, rows, state_batch_dim=1)
""",
    "bptt.models": """
CharModel(characters, cell, hidden, layers=1, embedding=64)
Flow(size, viscosity, modes=(), coefficients=None, *, dt=0.02, mean=(0.0, 0.0), device=None, dtype=None)
Forecaster(columns, places, targets, horizons, cell='lstm', hidden=64, layers=1, dtype=torch.float64)
Network(inputs, hidden, outputs, cell='lstm', layers=1)
TakagiSugeno(low, high, sets=('low', 'medium', 'high'), lags=2, inputs=1, *, widths=(0.4, 0.8), closest=0.0,
    device=None, dtype=None)
write(step, vocabulary, prompt='', length=400, temperature=0.6, generator=None)
""",
}
"""Name and arguments, annotations and private fields aside; a name without brackets is a module or a value."""


def names(module) -> list[str]:
    """What `from module import *` gives, sorted."""
    functions = [name for name, thing in vars(module).items() if inspect.isfunction(thing) and name[0] != "_"]
    return sorted(getattr(module, "__all__", functions))


def described(module, name: str) -> str:
    """The name and the arguments of a call."""
    thing = getattr(module, name)
    if not callable(thing):
        return name
    signature = inspect.signature(thing)
    kept = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name[0] != "_"]
    return f"{name}{signature.replace(parameters=kept, return_annotation=signature.empty)}"


@pytest.mark.parametrize("path", PUBLIC)
def test_public_names_and_how_they_are_called(path):
    module = importlib.import_module(path)
    assert [described(module, name) for name in names(module)] == re.sub(r"\n +", " ", PUBLIC[path]).split("\n")[1:-1]


@pytest.mark.parametrize("path", PUBLIC)
def test_every_public_name_is_explained(path):
    module = importlib.import_module(path)
    for name in names(module):
        thing = getattr(module, name)
        if callable(thing) or isinstance(thing, ModuleType):
            doc = thing.__doc__ or ""
            assert doc, f"{path}.{name} has no docstring"
            assert not doc.startswith(f"{name}("), f"{path}.{name} has only the one that a dataclass gets by itself"


def test_nothing_else_is_in_sight():
    """Beside modules, what one sees of the package is what it says is public; its types are shipped."""
    seen = {name for name, thing in vars(bptt).items() if name[0] != "_" and not isinstance(thing, ModuleType)}
    assert seen == set(bptt.__all__) - {"Race", "analysis", "equations", "nn", "race", "strategies"}
    assert (importlib.resources.files(bptt) / "py.typed").is_file()
