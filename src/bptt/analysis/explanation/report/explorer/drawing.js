// What the page shows: numbers, the unfolded network, plots.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// Four digits, with a true minus sign.
function short(value) {
  if (!Number.isFinite(value)) return "–";
  const plain = value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5);
  return (plain ? Number(value.toPrecision(4)).toString() : value.toExponential(2)).replaceAll("-", "−");
}

// A number, with all its digits for who points at it.
function say(id, value) {
  $(id).textContent = short(value);
  $(id).title = String(value);
}

function sayRows(id, rows) {
  $(id).replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    line.replaceChildren(...row.map((value) => {
      const cell = document.createElement("td");
      cell.textContent = short(value);
      cell.title = String(value);
      return cell;
    }));
    return line;
  }));
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A picture as wide as its place, height in pixels, and what it shows in words.
function picture(id, height, words, shapes) {
  const width = Math.max(280, $(id).clientWidth);
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": words});
  svg.append(...shapes(width));
  $(id).replaceChildren(svg);
}

// ---- The unfolded network -------------------------------------------------------------------------------------------

const LEVEL = {l: 24, o: 82, h: 150, x: 218};
const NODE = 15;

// The steps that are drawn from the use of W at step k to the loss of step t; null where steps are left out. A window's
// edge at `start`, if the term crosses one, is among them.
function shownSteps(t, k, start) {
  if (t - k <= 3) return Array.from({length: t - k + 2}, (_, i) => k - 1 + i);
  const wanted = new Set(start > k ? [k - 1, k, start - 1, start, t] : [k - 1, k, k + 1, t - 1, t]);
  const steps = [...wanted].sort((one, other) => one - other);
  return steps.flatMap((step, i) => (i && step > steps[i - 1] + 1 ? [null, step] : [step]));
}

// edges: null, or the first step of t's window, `start`, and the length k1 of all windows. From there back goes the
// cotangent, up to there went the influence.
function network(t, k, dropped, boundaries, edges) {
  const start = edges ? edges.start : 0;
  const steps = shownSteps(t, k, start);
  const way = (step) => (step < start ? "carried" : "path");
  picture("network", 272, `Path of term t = ${t}, k = ${k} through the unfolded network`, (width) => {
    const column = Math.min(110, (width - 2 * NODE - 6) / (steps.length - 1));
    const at = (i) => NODE + 3 + i * column;
    const shapes = [];
    steps.forEach((step, i) => {
      if (step === null) shapes.push(draw("text", {x: at(i), y: LEVEL.h + 5, class: "gap"}, "· · ·"));
      else shapes.push(...stepShapes(step, at(i), i === 0, way(step), step === t ? "path" : ""));
      if (i === 0) return;
      const from = steps[i - 1], kind = step === k ? "use" : way(step ?? from + 1);
      shapes.push(...acrossShapes(from, step, at(i - 1), at(i), kind));
      if (from === null || step === null) return;
      const middle = (at(i - 1) + at(i)) / 2;
      if (edges) shapes.push(...edgeShapes(step, middle, edges, step === start && start > k));
      else if (boundaries && step > 0) shapes.push(...boundaryShapes(boundaries[step], middle));
    });
    return shapes;
  });
  $("network").classList.toggle("dropped", dropped);
}

function stepShapes(step, x, first, state, loss) {
  const name = (symbol) => [symbol, draw("tspan", {dy: 4, class: "index"}, String(step).replace("-", "−"))];
  const node = (symbol, kind) => [
    draw("circle", {cx: x, cy: LEVEL[symbol], r: NODE, class: kind}),
    draw("text", {x, y: LEVEL[symbol] + 4}, ...name(symbol)),
  ];
  if (first) return node("h", "use");
  const up = (low, high, matrix, kind) => [
    draw("path", {d: `M${x} ${LEVEL[low] - NODE}V${LEVEL[high] + NODE + 2}`, class: `arrow ${kind}`}),
    draw("text", {x: x + 12, y: (LEVEL[low] + LEVEL[high]) / 2 + 5}, matrix),
  ];
  return [
    ...up("x", "h", "U", ""), ...up("h", "o", "V", loss), ...up("o", "l", "", loss),
    ...node("x", ""), ...node("h", state), ...node("o", loss), ...node("l", loss),
    draw("text", {x, y: 262, class: "step"}, String(step)),
  ];
}

function acrossShapes(from, to, x0, x1, kind) {
  const left = x0 + (from === null ? 22 : NODE), right = x1 - (to === null ? 22 : NODE + 2);
  const arrow = draw("path", {d: `M${left} ${LEVEL.h}H${right}`, class: `arrow ${kind}`});
  return from === null || to === null ? [arrow] : [arrow, draw("text", {x: (x0 + x1) / 2, y: LEVEL.h - 9}, "W")];
}

const upright = (x, kind) => draw("path", {d: `M${x} ${LEVEL.h - 6}V${LEVEL.h + 28}`, class: kind});
const below = (x, said) => draw("text", {x, y: LEVEL.h + 42, class: "step"}, said);

function boundaryShapes(weight, x) {
  if (weight === 0) return [upright(x, "cut"), below(x, "cut")];
  return weight === 1 ? [] : [below(x, weight.toFixed(2))];
}

function edgeShapes(step, x, {k1}, met) {
  if (step <= 0 || step % k1 !== 0) return [];
  return met ? [upright(x, "edge"), below(x + 4, "c·J")] : [upright(x, "edge")];
}

// ---- Plots ----------------------------------------------------------------------------------------------------------

const MARGIN = {left: 54, right: 10, top: 10, bottom: 34};

// Axes, lines of points [x, y], and straight marks at one x or one y. dots: points that aren't joined.
function plot(id, words, {x, y, ticks, show, label, marks, lines, dots = []}) {
  const height = 270;
  picture(id, height, words, (width) => {
    const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
    const px = (value) => MARGIN.left + ((value - x[0]) / (x[1] - x[0] || 1)) * (right - MARGIN.left);
    const py = (value) => bottom - ((value - y[0]) / (y[1] - y[0])) * (bottom - MARGIN.top);
    const inside = ([, value]) => value >= y[0] && value <= y[1];
    const shapes = [];
    for (const tick of ticks) {
      shapes.push(draw("path", {d: `M${MARGIN.left} ${py(tick)}H${right}`, class: "grid"}));
      shapes.push(draw("text", {x: MARGIN.left - 6, y: py(tick) + 4, class: "ytick"}, ...show(tick)));
    }
    for (let i = 0; i <= 4; i++) {
      const value = Math.round(x[0] + ((x[1] - x[0]) * i) / 4);
      shapes.push(draw("text", {x: px(value), y: bottom + 16, class: "xtick"}, String(value)));
    }
    shapes.push(draw("text", {x: (MARGIN.left + right) / 2, y: height - 3, class: "xtick"}, label));
    for (const mark of marks) {
      const d = "x" in mark ? `M${px(mark.x)} ${MARGIN.top}V${bottom}` : `M${MARGIN.left} ${py(mark.y)}H${right}`;
      shapes.push(draw("path", {d, class: `line ${mark.class}`}));
    }
    const dotted = dots.filter(inside).map(([a, b]) => `M${px(a).toFixed(1)} ${py(b).toFixed(1)}h0`);
    shapes.push(draw("path", {d: dotted.join("") || "M0 0", class: "dots"}));
    for (const line of lines) {
      let pen = "M";
      const d = line.points.map((point) => {
        if (!inside(point)) return (pen = "M"), "";
        const drawn = `${pen}${px(point[0]).toFixed(1)} ${py(point[1]).toFixed(1)}`;
        pen = "L";
        return drawn;
      });
      shapes.push(draw("path", {d: d.join("") || "M0 0", class: `line ${line.class}`}));
    }
    return shapes;
  });
}

const power = (exponent) => ["10", draw("tspan", {dy: -5, class: "index"}, String(exponent).replace("-", "−"))];

function jacobianPlot({t, k, radius, clip}, lags) {
  const norms = lags.map(({jacobian, cotangent, clipped}) =>
    [stretch(jacobian), Math.hypot(...cotangent), Math.hypot(...clipped)]);
  const guide = lags.map((_, lag) => [lag, Math.log10(radius) * lag]);
  const logs = [...norms.flat(), 1].filter((value) => value > 0).map(Math.log10);
  const low = Math.max(-20, Math.floor(Math.min(...logs)));
  const high = Math.max(low + 2, Math.ceil(Math.max(...logs)));
  const gap = Math.ceil((high - low) / 6);
  const curve = (i) => norms.map((row, lag) => [lag, Math.log10(row[i])]);
  plot("jacobians", "Norms of the Jacobian product and of the cotangent over the lag, on a logarithmic scale", {
    x: [0, Math.max(1, t)], y: [low, high], label: "lag t − k in steps",
    ticks: Array.from({length: Math.floor((high - low) / gap) + 1}, (_, i) => low + i * gap),
    show: power,
    marks: [{x: t - k, class: "chosen"}],
    lines: [
      {points: guide, class: "guide"}, {points: curve(0), class: "product"}, {points: curve(1), class: "cotangent"},
      ...(Number.isFinite(clip) ? [{points: curve(2), class: "clipped"}] : []),
    ],
  });
  sayRows("lags", norms.map((row, lag) => [lag, ...row]));
}

// The (t, k) triangle as one shape for each shade: 0 dropped, 1 kept, 2 to 5 enlarged, 6 carried.
function mapOfTerms({t, k}, omega, k1) {
  const enlarged = (weight) => (weight === 0 ? 0 : Math.min(5, 1 + Math.floor(Math.log2(weight) + 1e-9)));
  const shapes = ["", "", "", "", "", "", ""];
  omega.forEach((row, i) => row.forEach((weight, j) => {
    shapes[k1 && j < windowStart(i, k1) ? 6 : enlarged(weight)] += `M${j} ${i}h1v1h-1z`;
  }));
  const steps = omega.length;
  const viewBox = `-.5 -.5 ${steps + 1} ${steps + 1}`;
  const svg = draw("svg", {viewBox, role: "img", "aria-label": "Which terms (t, k) are kept"});
  svg.append(...shapes.map((d, i) => draw("path", {d: d || "M0 0", class: `w${i}`})));
  svg.append(draw("rect", {x: k - 0.25, y: t - 0.25, width: 1.5, height: 1.5, class: "here"}));
  svg.append(draw("path", {d: `M-.5 ${t + 0.5}H${k - 0.25}M${k + 0.5} ${t + 1.25}V${steps + 0.5}`, class: "hair"}));
  $("map").replaceChildren(svg);
}

function meanPlot(walk, exact) {
  const along = (g) => inner(g, exact) / inner(exact, exact);
  let total = ZERO;
  const means = walk.map((g, i) => {
    total = sum(total, g);
    return [i + 1, along(scaled(1 / (i + 1), total))];
  });
  const values = means.map(([, value]) => value).filter(Number.isFinite);
  const low = Math.max(-4, Math.min(0, Math.floor(Math.min(...values))));
  const high = Math.min(6, Math.max(2, Math.ceil(Math.max(...values))));
  const gap = (high - low) / 4;
  plot("walk", "The running mean of ARTBP's gradients, along the exact gradient, which is 1", {
    x: [1, Math.max(2, walk.length)], y: [low, high], label: "draws",
    ticks: Array.from({length: 5}, (_, i) => low + i * gap),
    show: (value) => [short(value)],
    marks: [{y: 1, class: "exact"}],
    dots: walk.map((g, i) => [i + 1, along(g)]),
    lines: [{points: means, class: "mean"}],
  });
  return scaled(1 / walk.length, total);
}

// One cell for each boundary of the present draw.
function boundaryStrip(boundaries) {
  picture("strip", 34, "Boundaries of this draw: where it cut, and how much the others enlarge", (width) => {
    const cell = width / boundaries.length;
    return boundaries.map((weight, t) => draw("rect", {
      x: t * cell + 0.5, width: Math.max(1, cell - 1),
      ...(weight === 0 ? {y: 0, height: 34, class: "strip-cut"} : {y: 16, height: 14, class: "strip-kept"}),
    }));
  });
}
