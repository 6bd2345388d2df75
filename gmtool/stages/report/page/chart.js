"use strict";
// One plot: curves over steps, or scores over evaluations. Everything is drawn from `spec`, and again when it changes.
//   spec.series  [{name, run, colour, dash, x: [], y: [], low: [], high: []}]
//   spec.floors  [{name, y}]   spec.xLabel, spec.yLabel   spec.marks: a mark at each point
// state: {xLog, yLog, smooth, hidden: Set of names}

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const FLOORS = ["6 4", "2 3", "10 3 2 3", "12 4"];

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

// --- scales ----------------------------------------------------------------------------------------------------------

// A scale from values to [0, 1]. Logarithmic where all values are positive; else linear around zero, as wide as the
// smallest tenth of the values, and logarithmic beyond it.
function scale(values, log, pad) {
  let low = Math.min(...values), high = Math.max(...values);
  if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  let to = (v) => v, back = (v) => v, ticks = linearTicks, kind = "";
  if (log && low > 0) {
    [to, back, ticks, kind] = [Math.log10, (v) => 10 ** v, logTicks, "log"];
  } else if (log) {
    const sizes = values.map(Math.abs).filter((v) => v > 0).sort((a, b) => a - b);
    const knee = sizes.length ? 10 ** Math.floor(Math.log10(sizes[Math.floor(sizes.length / 10)])) : 1;
    [to, back] = [(v) => Math.asinh(v / knee) / Math.LN10, (v) => knee * Math.sinh(v * Math.LN10)];
    [ticks, kind] = [(a, b) => signedTicks(a, b, knee), "signed log"];
  }
  const space = (to(high) - to(low)) * pad;
  const from = to(low) - space, until = to(high) + space;
  const at = (v) => (to(v) - from) / (until - from);
  const inside = (found) => found.filter((v) => at(v) >= -1e-9 && at(v) <= 1 + 1e-9);
  const own = inside(ticks(back(from), back(until)));
  return { at, kind, ticks: own.length > 2 ? own : inside(linearTicks(back(from), back(until))) };
}

function linearTicks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [], decades = Math.log10(high / low);
  const steps = decades > 4 ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 3, 5, 7];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
    for (const m of steps) found.push(Number((m * 10 ** p).toPrecision(12)));
  return found;
}

function signedTicks(low, high, knee) {
  const found = [0];
  for (let v = knee; v <= Math.max(Math.abs(low), Math.abs(high)); v *= 10)
    for (const m of [1, 3]) found.push(m * v, -m * v);
  return [...new Set(found.map((v) => Number(v.toPrecision(12))))].sort((a, b) => a - b);
}

// Mean of a curve's past, with weights that fall by a factor for each point, without the pull to zero at its start.
function smoothed(values, strength) {
  if (!strength) return values;
  const keep = 1 - 1 / 2 ** strength;
  let sum = 0, weight = 0;
  return values.map((v) => {
    sum = keep * sum + (1 - keep) * v;
    weight = keep * weight + (1 - keep);
    return sum / weight;
  });
}

// --- the plot --------------------------------------------------------------------------------------------------------

class Chart {
  constructor(root, spec, state) {
    [this.root, this.spec, this.state, this.place] = [root, spec, state, null];
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.said = document.createElement("div");
    this.said.className = "skip";
    this.said.setAttribute("aria-live", "polite");
    root.after(this.said);
    new ResizeObserver(() => this.draw()).observe(root);
    root.addEventListener("pointermove", (event) => this.point(event));
    root.addEventListener("pointerdown", (event) => this.point(event));
    root.addEventListener("pointerleave", () => this.show(null));
    root.addEventListener("blur", () => this.show(null));
    root.addEventListener("keydown", (event) => this.key(event));
  }

  draw() {
    const { root, spec, state } = this;
    const width = root.clientWidth, height = root.clientHeight;
    if (!width) return; // in a tab that is not shown
    const lines = spec.series.filter((each) => !state.hidden.has(each.name) && each.x.length);
    this.lines = lines.map((each) => ({ ...each, drawn: smoothed(each.y, spec.marks ? 0 : state.smooth) }));
    root.replaceChildren(this.tip);
    this.svg = element("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    root.prepend(this.svg);
    if (!lines.length) {
      element("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, this.svg).textContent = "nothing to show";
      return;
    }
    const finite = (values) => values.filter((v) => v !== null);
    const ys = this.lines.flatMap((each) => finite(spec.marks ? [...each.low, ...each.high] : each.drawn));
    const raw = spec.marks ? [] : this.lines.flatMap((each) => inner(each.y));
    this.y = scale([...ys, ...raw, ...spec.floors.map((each) => each.y)], state.yLog, 0.05);
    const xs = this.lines.flatMap((each) => each.x);
    this.x = scale(state.xLog ? xs.map((v) => Math.max(v, 1e-9)) : xs, state.xLog, spec.marks ? 0.04 : 0);
    this.xs = [...new Set(xs)].sort((a, b) => a - b);
    const labels = this.y.ticks.map(short);
    const left = 14 + Math.max(30, ...labels.map((each) => each.length * 7));
    this.box = { left, right: width - 10, top: 22, bottom: height - 40 };
    this.axes(labels);
    for (const [index, floor] of spec.floors.entries()) {
      const y = this.toY(floor.y), dashes = FLOORS[index % 4];
      element("line", { class: "floor", x1: left, x2: this.box.right, y1: y, y2: y, "stroke-dasharray": dashes }, this.svg);
    }
    for (const each of this.lines) this.line(each);
    this.cursor = element("line", { class: "cursor", y1: this.box.top, y2: this.box.bottom, visibility: "hidden" }, this.svg);
    if (this.place !== null) this.show(Math.min(this.place, this.xs.length - 1));
  }

  toX(v) { return this.box.left + this.x.at(v) * (this.box.right - this.box.left); }
  toY(v) { return this.box.bottom - this.y.at(v) * (this.box.bottom - this.box.top); }

  axes(labels) {
    const { left, right, top, bottom } = this.box, { spec, svg } = this;
    this.y.ticks.forEach((tick, index) => {
      const y = this.toY(tick);
      element("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }, svg);
      element("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, svg).textContent = labels[index];
    });
    const ticks = spec.marks && this.xs.length <= 9 ? this.xs : this.x.ticks;
    let free = -Infinity;
    for (const tick of ticks) {
      const x = this.toX(tick), text = short(tick), half = text.length * 3.6;
      if (x - half < free || x > right + 1) continue;
      free = x + half + 8;
      element("text", { x: Math.min(x, right - half + 8), y: bottom + 18, "text-anchor": "middle" }, svg).textContent = text;
    }
    const kind = (axis) => (axis.kind ? `, ${axis.kind} scale` : "");
    element("text", { x: 0, y: 11 }, svg).textContent = spec.yLabel + kind(this.y);
    element("text", { x: right, y: bottom + 35, "text-anchor": "end" }, svg).textContent = spec.xLabel + kind(this.x);
  }

  line(each) {
    const { spec, svg } = this;
    const group = element("g", { class: `s${each.colour % 8}`, color: "currentColor" }, svg);
    const path = (values) => {
      let text = "", pen = "M";
      each.x.forEach((x, index) => {
        if (values[index] === null) { pen = "M"; return; }
        text += `${pen}${this.toX(x).toFixed(1)} ${this.toY(values[index]).toFixed(1)}`;
        pen = "L";
      });
      return text;
    };
    if (spec.marks && each.x.length > 1 && each.low.some((low, index) => low !== each.high[index])) {
      const back = each.x.map((x, i) => [x, each.low[i]]).reverse().filter(([, v]) => v !== null);
      const edge = back.map(([x, v]) => `L${this.toX(x).toFixed(1)} ${this.toY(v).toFixed(1)}`).join("");
      element("path", { class: "band", fill: "currentColor", d: `${path(each.high)}${edge}Z` }, group);
    }
    if (!spec.marks && this.state.smooth) element("path", { class: "raw", stroke: "currentColor", d: path(each.y) }, group);
    element("path", { class: "curve", stroke: "currentColor", "stroke-dasharray": DASHES[each.dash % 4], d: path(each.drawn) }, group);
    if (!spec.marks) return;
    each.x.forEach((x, index) => {
      if (each.drawn[index] !== null) mark(group, each.colour, this.toX(x), this.toY(each.drawn[index]));
    });
  }

  // --- values under the pointer, or by the arrow keys

  point(event) {
    if (!this.box || !this.xs) return;
    const x = event.clientX - this.root.getBoundingClientRect().left;
    let best = 0;
    this.xs.forEach((each, index) => {
      if (Math.abs(this.toX(each) - x) < Math.abs(this.toX(this.xs[best]) - x)) best = index;
    });
    this.show(best);
  }

  key(event) {
    if (!this.xs) return;
    const last = this.xs.length - 1, stride = Math.max(1, Math.round(last / 50));
    const moves = { ArrowLeft: -stride, ArrowRight: stride, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") return this.show(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    const from = this.place === null ? (moves[event.key] > 0 ? -stride : last + stride) : this.place;
    this.show(Math.max(0, Math.min(last, from + moves[event.key])));
    this.said.textContent = this.tip.innerText.replace(/\s+/g, " ");
  }

  show(place) {
    this.place = place;
    this.tip.hidden = place === null;
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", place === null ? "hidden" : "visible");
    if (place === null) return;
    const at = this.xs[place], x = this.toX(at);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    const table = document.createElement("table");
    const row = (name, value, colour) => {
      const made = table.insertRow(), first = made.insertCell();
      if (colour !== undefined) {
        const dot = document.createElement("span");
        dot.className = `dot s${colour % 8}`;
        first.append(dot);
      }
      first.append(name);
      made.insertCell().append(value);
    };
    row(this.spec.xLabel, short(at));
    for (const each of this.lines) {
      const index = this.spec.marks ? each.x.indexOf(at) : nearest(each.x, at);
      const value = index < 0 ? null : each.drawn[index];
      if (value === null) continue;
      const spread = this.spec.marks && each.low[index] !== each.high[index];
      row(each.name, short(value) + (spread ? ` (${short(each.low[index])} to ${short(each.high[index])})` : ""), each.colour);
    }
    for (const floor of this.spec.floors) row(floor.name, short(floor.y));
    this.tip.replaceChildren(table);
    const wide = this.tip.offsetWidth, right = x + 14 + wide > this.root.clientWidth;
    this.tip.style.left = `${Math.max(0, right ? x - 14 - wide : x + 14)}px`;
  }
}

// The values of a curve without its highest and lowest hundredth, so that a spike does not flatten the rest.
function inner(values) {
  const sorted = values.filter((v) => v !== null).sort((a, b) => a - b), cut = Math.floor(sorted.length / 100);
  return sorted.slice(cut, sorted.length - cut);
}

function nearest(xs, at) {
  if (!xs.length || at > xs[xs.length - 1] || at < xs[0]) return -1;
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= at) low = middle; else high = middle;
  }
  return at - xs[low] < xs[high] - at ? low : high;
}

// A circle, square, triangle or diamond: a run is told by its mark too.
function mark(parent, kind, x, y) {
  const shapes = [
    ["circle", { cx: x, cy: y, r: 4.5 }],
    ["rect", { x: x - 4, y: y - 4, width: 8, height: 8 }],
    ["path", { d: `M${x} ${y - 5.5}l5 9h-10z` }],
    ["path", { d: `M${x} ${y - 6}l5.5 6l-5.5 6l-5.5 -6z` }],
  ];
  const [name, attributes] = shapes[kind % 4];
  element(name, { class: "mark", fill: "currentColor", ...attributes }, parent);
}
