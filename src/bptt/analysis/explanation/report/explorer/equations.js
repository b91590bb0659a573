"use strict";
// The mathematics of bptt.equations for a network of two units and one input, on plain arrays: nothing of the page.

// f by a, and f' by a and f(a).
const ACTIVATIONS = {
  identity: [(a) => a, () => 1],
  tanh: [Math.tanh, (a, h) => 1 - h * h],
  relu: [(a) => Math.max(0, a), (a) => (a > 0 ? 1 : 0)],
  sigmoid: [(a) => 1 / (1 + Math.exp(-a)), (a, h) => h * (1 - h)],
};

const dot = (u, v) => u[0] * v[0] + u[1] * v[1];
const times = (A, v) => [dot(A[0], v), dot(A[1], v)];
const transposed = (A) => [[A[0][0], A[1][0]], [A[0][1], A[1][1]]];
const product = (A, B) => transposed(transposed(B).map((column) => times(A, column)));
const outer = (u, v) => u.map((a) => v.map((b) => a * b));
const scaled = (factor, A) => A.map((row) => (Array.isArray(row) ? scaled(factor, row) : factor * row));
const sum = (A, B) => A.map((row, i) => row.map((value, j) => value + B[i][j]));
const inner = (A, B) => dot(A[0], B[0]) + dot(A[1], B[1]);
const size = (A) => Math.sqrt(inner(A, A));
const ZERO = [[0, 0], [0, 0]];
const ONE = [[1, 0], [0, 1]];

// The largest stretch of a vector, which is the largest singular value, in closed form.
function stretch([[a, b], [c, d]]) {
  return (Math.hypot(a + d, c - b) + Math.hypot(a - d, b + c)) / 2;
}

// a_t = U x_t + W h_{t-1}, h_t = f(a_t), o_t = V h_t, e_t = o_t - y_t, with W = radius · W0.
function forward({U, W0, V, x, y}, radius, nonlinearity) {
  const W = scaled(radius, W0);
  const [f, slope] = ACTIVATIONS[nonlinearity];
  const trace = {W, x, steps: x.length, before: [], slopes: [], atLoss: []};
  let h = [0, 0];
  for (let t = 0; t < x.length; t++) {
    const a = times(W, h).map((value, i) => U[i] * x[t] + value);
    trace.before.push(h);
    h = a.map(f);
    trace.slopes.push(a.map((value, i) => slope(value, h[i])));
    trace.atLoss.push(scaled(dot(V, h) - y[t], V)); // Vᵀ e_t
  }
  return trace;
}

// D_k W = ∂h_k/∂h_{k-1}.
const stepJacobian = (trace, k) => trace.W.map((row, i) => scaled(trace.slopes[k][i], row));

// From the loss of step t back to step 0. Entry n has lag n: the Jacobian ∂h_t/∂h_{t-n}, the cotangent ∂l_t/∂h_{t-n},
// and the cotangent if what a step sends to the one before is clipped to the norm `clip`.
function walkBack(trace, t, clip) {
  const back = (k, c) => times(transposed(trace.W), c.map((value, i) => trace.slopes[k][i] * value)); // Wᵀ D_k c
  const lags = [{jacobian: ONE, cotangent: trace.atLoss[t], clipped: trace.atLoss[t]}];
  for (let k = t; k > 0; k--) {
    const {jacobian, cotangent, clipped} = lags[t - k];
    const sent = back(k, clipped);
    const norm = Math.hypot(...sent);
    lags.push({
      jacobian: product(jacobian, stepJacobian(trace, k)),
      cotangent: back(k, cotangent),
      clipped: norm > clip ? scaled(clip / norm, sent) : sent,
    });
  }
  return lags;
}

// Every term (t, k) of dL/dW: what the loss of step t owes to the use of W at step k.
function allTerms(trace) {
  return trace.x.map((_, t) => {
    const row = [];
    walkBack(trace, t, Infinity).forEach(({cotangent}, lag) => {
      const delta = cotangent.map((value, i) => trace.slopes[t - lag][i] * value);
      row[t - lag] = outer(delta, trace.before[t - lag]);
    });
    return row;
  });
}

// dL/dW with a weight on each term.
function gradient(terms, omega) {
  let total = ZERO;
  terms.forEach((row, t) => row.forEach((term, k) => {
    if (omega[t][k] !== 0) total = sum(total, scaled(omega[t][k], term));
  }));
  return total;
}

// The influence J = ∂h/∂W before each step, one matrix for each unit, by J ← D_t W J + I_t. SnAp-1 (diagonal) keeps of it,
// after every step, what a row of W does to its own unit.
function influences(trace, diagonal) {
  const all = [[ZERO, ZERO]];
  for (let t = 0; t < trace.x.length; t++) {
    all.push(stepJacobian(trace, t).map((row, unit) => {
      const own = ZERO.map((zeros, i) => (i === unit ? scaled(trace.slopes[t][i], trace.before[t]) : zeros));
      const next = sum(applied(row, all[t]), own);
      return diagonal ? next.map((values, i) => (i === unit ? values : [0, 0])) : next;
    }));
  }
  return all;
}

// c · J: a matrix for each unit, weighted and added.
const applied = (c, J) => sum(scaled(c[0], J[0]), scaled(c[1], J[1]));

// Windows of k1 steps, from a on: what their losses owe to their own steps, going back; c, which arrives at the window's
// start; J, which was carried there; and c · J, what the losses owe to all earlier steps.
function carriedWindows(trace, k1, diagonal) {
  const before = influences(trace, diagonal);
  const windows = [];
  for (let a = 0; a < trace.x.length; a += k1) {
    let inside = ZERO, c = [0, 0];
    const end = Math.min(a + k1, trace.x.length);
    for (let t = end - 1; t >= a; t--) {
      const delta = c.map((value, i) => trace.slopes[t][i] * (value + trace.atLoss[t][i]));
      inside = sum(inside, outer(delta, trace.before[t]));
      c = times(transposed(trace.W), delta);
    }
    windows.push({a, end, inside, c, influence: before[a], carried: applied(c, before[a])});
  }
  return windows;
}

// What SnAp-1 carries of the term (t, k) over the edge before step a: the path that never leaves a parameter's own unit.
function carriedPart(trace, t, k, a) {
  const c = times(transposed(stepJacobian(trace, a)), walkBack(trace, t, Infinity)[t - a].cotangent);
  const delta = c.map((value, i) => {
    for (let j = k + 1; j < a; j++) value *= stepJacobian(trace, j)[i][i];
    return trace.slopes[k][i] * value;
  });
  return outer(delta, trace.before[k]);
}

const triangle = (steps, weight) =>
  Array.from({length: steps}, (_, t) => Array.from({length: t + 1}, (_, k) => weight(t, k)));

// ω_tk = w_{k+1} · ... · w_t: boundary t lies between the steps t - 1 and t.
function pairWeights(boundaries) {
  const omega = triangle(boundaries.length, () => 1);
  for (let t = 1; t < boundaries.length; t++)
    for (let k = 0; k < t; k++) omega[t][k] = boundaries[t] * omega[t - 1][k];
  return omega;
}

// The hazard of bptt.PolynomialLaw with alpha = 3, for k steps since the last cut.
const hazard = (k, meanLength) => 3 / (2 * meanLength + k);

// One draw of ARTBP: w_t = 0 with probability p_t, a cut, else 1 / (1 - p_t).
function drawBoundaries(steps, meanLength, random) {
  const boundaries = [1];
  for (let t = 1, last = 0; t < steps; t++) {
    const p = hazard(t - last, meanLength);
    const cut = random() < p;
    boundaries.push(cut ? 0 : 1 / (1 - p));
    if (cut) last = t;
  }
  return boundaries;
}

// Numbers in [0, 1) from a seed, the same everywhere: mulberry32.
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let z = Math.imul(seed ^ (seed >>> 15), seed | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
  };
}

const windowStart = (t, k1) => t - (t % k1);

// What may be chosen as strategy: what its number is called and where it starts, and the boundary weights or pair
// weights it leads to. `drawn` is ARTBP's present draw. One that carries has window edges: what crosses them is no part
// of the double sum then, but comes through J, whole or, with `diagonal`, in part.
const STRATEGIES = {
  full: {omega: (steps) => triangle(steps, () => 1)},
  last: {
    number: "τ, terms kept of each sum", start: 8, least: 1,
    omega: (steps, tau) => triangle(steps, (t, k) => (t - k < tau ? 1 : 0)),
  },
  cut: {
    number: "τ, steps of a subsequence", start: 8, least: 1,
    boundaries: (steps, tau) => Array.from({length: steps}, (_, t) => (t && t % tau === 0 ? 0 : 1)),
  },
  weight: {
    number: "mean length of a window", start: 12, least: 2,
    boundaries: (steps, meanLength, drawn) => drawn,
  },
  carry: {
    number: "k1, steps of a window", start: 8, least: 1, carries: true,
    omega: (steps) => triangle(steps, () => 1),
  },
  snap: {
    number: "k1, steps of a window", start: 8, least: 1, carries: true, diagonal: true,
    omega: (steps, k1) => triangle(steps, (t, k) => (k >= windowStart(t, k1) ? 1 : 0)),
  },
};
