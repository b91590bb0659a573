// The controls: what is chosen, and everything that follows from it.

const example = JSON.parse($("example").textContent);
const STEPS = example.x.length;
const FIRST_DRAWS = 30;
const state = {seed: 1, random: generator(1), drawn: null, walk: [], for: ""};

function setting() {
  const number = (id) => Number($(id).value);
  const t = number("t");
  const exponent = number("clip");
  return {
    t, k: Math.min(t, number("k")), radius: number("radius"), nonlinearity: $("nonlinearity").value,
    strategy: $("strategy").value, number: number("number"),
    clip: exponent >= Number($("clip").max) ? Infinity : 10 ** exponent,
  };
}

// ARTBP's draws belong to one law: a new mean length starts the walk again. Another network changes their gradients.
function drawn(chosen, terms, more) {
  const meanLength = chosen.strategy === "weight" ? chosen.number : STRATEGIES.weight.start;
  const key = JSON.stringify([meanLength, chosen.radius, chosen.nonlinearity]);
  if (state.for !== key) Object.assign(state, {for: key, walk: [], random: generator(state.seed)});
  const count = state.walk.length ? more : FIRST_DRAWS;
  for (let i = 0; i < count; i++) {
    state.drawn = drawBoundaries(STEPS, meanLength, state.random);
    state.walk.push(gradient(terms, pairWeights(state.drawn)));
  }
}

function labels(chosen) {
  $("t-value").textContent = chosen.t;
  $("k-value").textContent = chosen.k;
  $("radius-value").textContent = chosen.radius.toFixed(2);
  $("number-value").textContent = chosen.number;
  $("clip-value").textContent = Number.isFinite(chosen.clip) ? short(chosen.clip) : "off";
  const {number} = STRATEGIES[chosen.strategy];
  $("number-row").hidden = !number;
  if (number) $("number-name").textContent = number;
}

function termNumbers(chosen, lags, terms, exact, omega, part) {
  const {t, k} = chosen;
  for (const element of document.querySelectorAll(".lag")) element.textContent = t - k;
  for (const element of document.querySelectorAll(".t")) element.textContent = t;
  for (const element of document.querySelectorAll(".k")) element.textContent = k;
  sayRows("jacobian", lags[t - k].jacobian);
  sayRows("term", terms[t][k]);
  say("jacobian-norm", stretch(lags[t - k].jacobian));
  say("power", chosen.radius ** (t - k));
  say("share", size(terms[t][k]) / size(exact));
  say("omega", omega[t][k]);
  $("identity").hidden = chosen.nonlinearity !== "identity";
  $("other").hidden = chosen.nonlinearity === "identity";
  $("part-figure").hidden = !part;
  $("weighting").hidden = Boolean(part);
  $("verdict").textContent = part ? "carries a part of it" : verdict(omega[t][k]);
  if (part) sayRows("part", part);
}

const verdict = (weight) => (weight === 0 ? "dropped" : weight === 1 ? "kept as it is" : "kept, and enlarged");

function estimateNumbers(omega, estimate, exact) {
  sayRows("exact", exact);
  sayRows("estimate", estimate);
  say("kept", omega.flat().filter((weight) => weight !== 0).length);
  say("error", size(sum(estimate, scaled(-1, exact))) / size(exact));
  say("cosine", inner(estimate, exact) / (size(estimate) * size(exact)));
}

function update(more = 0) {
  $("k").max = $("t").value;
  const chosen = setting(), {t, k} = chosen;
  labels(chosen);
  const trace = forward(example, chosen.radius, chosen.nonlinearity);
  const terms = allTerms(trace), exact = gradient(terms, triangle(STEPS, () => 1));
  const lags = walkBack(trace, t, chosen.clip);
  drawn(chosen, terms, more);
  const strategy = STRATEGIES[chosen.strategy];
  const boundaries = strategy.boundaries && strategy.boundaries(STEPS, chosen.number, state.drawn);
  const omega = boundaries ? pairWeights(boundaries) : strategy.omega(STEPS, chosen.number);
  const k1 = strategy.carries ? chosen.number : STRATEGIES.carry.start;
  const edges = strategy.carries ? {k1, start: windowStart(t, k1)} : null;
  const part = strategy.diagonal && k < edges.start ? carriedPart(trace, t, k, edges.start) : null;
  const throughWindows = carry(carriedWindows(trace, k1, strategy.diagonal), chosen, k1, exact);
  network(t, k, omega[t][k] === 0 && !part, boundaries, edges);
  termNumbers(chosen, lags, terms, exact, omega, part);
  jacobianPlot(chosen, lags);
  mapOfTerms(chosen, omega, edges && k1);
  $("in-part").hidden = !strategy.diagonal;
  estimateNumbers(omega, strategy.carries ? throughWindows : gradient(terms, omega), exact);
  artbp(exact);
  remember();
}

// The gradient by windows: inside + carried. Of the window that t lies in, everything; of all of them, the sums.
function carry(windows, {t, strategy}, k1, exact) {
  const {a, end, inside, c, influence, carried} = windows[Math.floor(t / k1)];
  for (const element of document.querySelectorAll(".k1")) element.textContent = k1;
  $("first").textContent = a;
  $("end").textContent = end - 1;
  $("carrier").textContent = strategy === "snap" ? "SnAp-1" : "RTRL";
  sayRows("influence", influence[0].flat().map((value, i) => [value, influence[1].flat()[i]]));
  sayRows("arriving", [c]);
  sayRows("window-inside", inside);
  sayRows("window-carried", carried);
  const all = (name) => windows.reduce((total, window) => sum(total, window[name]), ZERO);
  const insides = all("inside"), carrieds = all("carried"), both = sum(insides, carrieds);
  sayRows("inside", insides);
  sayRows("carried", carrieds);
  sayRows("both", both);
  say("inside-size", size(insides) / size(exact));
  say("carried-size", size(carrieds) / size(exact));
  say("both-off", size(sum(both, scaled(-1, exact))) / size(exact));
  return both;
}

function artbp(exact) {
  boundaryStrip(state.drawn);
  const cuts = state.drawn.flatMap((weight, t) => (weight === 0 ? [t] : []));
  $("cuts").textContent = cuts.length ? cuts.join(", ") : "none";
  const mean = meanPlot(state.walk, exact);
  sayRows("drawn", state.walk.at(-1));
  sayRows("mean", mean);
  say("draws", state.walk.length);
  say("off", size(sum(mean, scaled(-1, exact))) / size(exact));
}

function choose() {
  const {start, least} = STRATEGIES[$("strategy").value];
  if (start) {
    $("number").min = least;
    $("number").value = start;
  }
  update();
}

// The setting stands in the address, so that a link leads to it: #radius=1.2&nonlinearity=identity
const CONTROLS = ["strategy", "number", "nonlinearity", "radius", "clip", "t", "k"];
let later = 0;

function remember() {
  clearTimeout(later);
  later = setTimeout(() => {
    const chosen = new URLSearchParams(CONTROLS.map((id) => [id, $(id).value]));
    history.replaceState(null, "", `#${chosen}`);
  }, 300);
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const id of CONTROLS.filter((name) => given.has(name))) {
    const before = $(id).value;
    if (id === "k") $("k").max = $("t").value;
    $(id).value = given.get(id);
    if ($(id).value === "") $(id).value = before; // no such choice
    if (id === "strategy") $("number").min = STRATEGIES[$(id).value].least || 1;
  }
}

// Draw on, one draw a frame, until pressed again.
let playing = false;

function play() {
  playing = !playing;
  $("play").textContent = playing ? "Pause" : "Draw on";
  const frame = () => {
    if (!playing) return;
    update(1);
    requestAnimationFrame(frame);
  };
  frame();
}

for (const id of ["t", "k", "radius", "number", "clip"]) $(id).addEventListener("input", () => update());
$("nonlinearity").addEventListener("change", () => update());
$("strategy").addEventListener("change", choose);
$("play").addEventListener("click", play);
$("draw").addEventListener("click", () => update(1));
$("draw-many").addEventListener("click", () => update(100));
$("restart").addEventListener("click", () => {
  Object.assign(state, {for: "", seed: state.seed + 1});
  update();
});
$("map").addEventListener("click", (event) => {
  const box = $("map").getBoundingClientRect();
  const step = (part) => Math.floor(part * (STEPS + 1) - 0.5);
  const t = step((event.clientY - box.top) / box.height), k = step((event.clientX - box.left) / box.width);
  if (k < 0 || k > t || t >= STEPS) return;
  $("t").value = t;
  $("k").max = t;
  $("k").value = k;
  update();
});
addEventListener("hashchange", () => {
  recall();
  update();
});
recall();
let width = 0;
new ResizeObserver(() => {
  if (width !== document.body.clientWidth) update();
  width = document.body.clientWidth;
}).observe(document.body);
