"use strict";
// The page's controls. `data` is what `gmtool report` read: {charts: {key: spec}}.

const data = JSON.parse(document.getElementById("data").textContent);
const all = (query, root = document) => [...root.querySelectorAll(query)];
document.documentElement.classList.add("js");

for (const image of all("img[data-same-as]")) image.src = document.getElementById(image.dataset.sameAs).src;

// --- light and dark --------------------------------------------------------------------------------------------------

const theme = document.getElementById("theme");
const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
const tellTheme = () => theme.setAttribute("aria-pressed", isDark());
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  tellTheme();
});
tellTheme();

// --- plots -----------------------------------------------------------------------------------------------------------

for (const panel of all("[data-charts]")) {
  const state = { xLog: false, yLog: false, smooth: 0, hidden: new Set() };
  const charts = all("[data-chart]", panel).map((root) => {
    const spec = { ...data.charts[root.dataset.chart] };
    return { spec, chart: new Chart(root.querySelector(".plot"), spec, state) };
  });
  const choice = (name) => panel.querySelector(`[data-choice="${name}"]`);
  const update = () => {
    for (const box of all(".switch input:checked", panel)) state[box.name.endsWith("-x") ? "xLog" : "yLog"] = box.value === "log";
    state.smooth = Number(choice("smooth")?.value ?? 0);
    for (const { spec } of charts) if (spec.axes) choose(spec, choice("axis").value, choice("metric").value);
    legend(panel.querySelector(".legend"), charts[0].spec, charts.flatMap((each) => each.spec.series), state, update);
    for (const { chart } of charts) chart.draw();
  };
  panel.addEventListener("input", update);
  update();
}

// Make the lines of a metric over an axis the plot's own.
function choose(spec, axis, metric) {
  const about = spec.metrics[metric];
  spec.series = spec.axes[axis].lines.map((each) => ({
    ...each, y: each.values[metric], low: each.low[metric], high: each.high[metric],
  }));
  spec.xLabel = spec.axes[axis].label;
  spec.yLabel = about.label;
  spec.floors = about.floors;
}

function legend(list, spec, series, state, update) {
  const focused = document.activeElement?.dataset?.line;
  const names = new Map(series.map((each) => [each.name, each]));
  list.replaceChildren();
  for (const [name, each] of names) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.line = name;
    button.setAttribute("aria-pressed", !state.hidden.has(name));
    button.append(sample(each, spec.marks), name);
    button.addEventListener("click", () => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      update();
    });
    const item = document.createElement("li");
    item.append(button);
    list.append(item);
    if (focused === name) button.focus();
  }
  for (const [index, floor] of spec.floors.entries()) {
    const item = document.createElement("li");
    item.className = "floor-key";
    const svg = element("svg", { width: 26, height: 10, "aria-hidden": "true" });
    element("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: "currentColor", "stroke-dasharray": FLOORS[index % 4], "stroke-width": 1.2 }, svg);
    item.append(svg, floor.name);
    list.append(item);
  }
}

function sample(each, marks) {
  const svg = element("svg", { width: 26, height: 12, "aria-hidden": "true", class: `s${each.colour % 8}` });
  element("line", { x1: 0, x2: 26, y1: 6, y2: 6, stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": DASHES[each.dash % 4] }, svg);
  if (marks) mark(svg, each.colour, 13, 6);
  return svg;
}

// --- tabs ------------------------------------------------------------------------------------------------------------

for (const list of all('[role="tablist"]')) {
  const tabs = all('[role="tab"]', list);
  const select = (tab) => {
    for (const each of tabs) {
      each.setAttribute("aria-selected", each === tab);
      each.tabIndex = each === tab ? 0 : -1;
      document.getElementById(each.getAttribute("aria-controls")).hidden = each !== tab;
    }
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const places = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: tabs.length - 1 };
      if (!(event.key in places)) return;
      event.preventDefault();
      const next = tabs[(places[event.key] + tabs.length) % tabs.length];
      select(next);
      next.focus();
    });
  });
}

// --- previews --------------------------------------------------------------------------------------------------------

const previews = document.getElementById("preview-panel");
if (previews) {
  const steps = previews.dataset.steps.split(" ").map(Number);
  const slider = document.getElementById("step"), play = document.getElementById("play");
  let timer = null;
  const show = () => {
    const step = steps[slider.value], words = step.toLocaleString("en");
    document.getElementById("step-shown").textContent = words;
    slider.setAttribute("aria-valuetext", `step ${words}`);
    for (const run of all(".preview", previews)) {
      const frames = all(".frame", run);
      const last = frames.findLast((each) => Number(each.dataset.step) <= step) ?? frames[0];
      for (const each of frames) each.hidden = each !== last;
    }
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.setAttribute("aria-pressed", "false");
    play.textContent = "Play";
  };
  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === steps.length - 1) slider.value = 0;
    show();
    play.setAttribute("aria-pressed", "true");
    play.textContent = "Stop";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === steps.length - 1) stop();
    }, 600);
  });
  show();
}

// --- pictures at full size -------------------------------------------------------------------------------------------

const viewer = document.getElementById("viewer"), big = document.getElementById("viewer-image");
const canvas = viewer.querySelector(".canvas");
let group = [], current = 0, zoom = 1;

function fits() {
  const [wide, high] = [canvas.clientWidth - 24, canvas.clientHeight - 24];
  return Math.min(wide / big.naturalWidth, high / big.naturalHeight, 8) || 1;
}

function setZoom(value) {
  zoom = Math.max(0.1, Math.min(16, value));
  big.style.width = `${big.naturalWidth * zoom}px`;
  document.getElementById("viewer-zoom").textContent = `${Math.round(zoom * 100)} %`;
}

function look(index) {
  current = (index + group.length) % group.length;
  const image = group[current].querySelector("img");
  big.src = image.src;
  big.alt = image.alt;
  document.getElementById("viewer-caption").textContent = image.alt;
  big.decode().then(() => setZoom(fits()), () => {});
}

for (const button of all("button.open")) {
  button.addEventListener("click", () => {
    group = all("button.open").filter((each) => each.dataset.group === button.dataset.group);
    viewer.showModal();
    look(group.indexOf(button));
  });
}
const actions = {
  previous: () => look(current - 1),
  next: () => look(current + 1),
  in: () => setZoom(zoom * 1.5),
  out: () => setZoom(zoom / 1.5),
  fit: () => setZoom(fits()),
  close: () => viewer.close(),
};
for (const button of all("[data-do]", viewer)) button.addEventListener("click", actions[button.dataset.do]);
big.addEventListener("click", () => setZoom(zoom < 16 ? zoom * 1.5 : fits()));
viewer.addEventListener("keydown", (event) => {
  const keys = { ArrowLeft: "previous", ArrowRight: "next", "+": "in", "=": "in", "-": "out", 0: "fit" };
  if (event.key in keys && !(zoom > fits() * 1.01 && event.key.startsWith("Arrow"))) {
    event.preventDefault();
    actions[keys[event.key]]();
  }
});
viewer.addEventListener("close", () => group[current]?.focus());

// --- provenance ------------------------------------------------------------------------------------------------------

for (const link of all(".graph a.node")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    for (const each of all(".graph a.node")) each.removeAttribute("aria-current");
    for (const each of all("#nodes li")) each.classList.remove("chosen");
    link.setAttribute("aria-current", "true");
    const node = document.getElementById(link.getAttribute("href").slice(1));
    node.classList.add("chosen");
    node.firstElementChild.open = true;
    node.scrollIntoView({ block: "nearest" });
  });
}
for (const button of all("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // where the clipboard is closed to pages, as to a file's
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// --- where one is ----------------------------------------------------------------------------------------------------

const links = new Map(all("nav a").map((each) => [each.getAttribute("href").slice(1), each]));
const here = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-15% 0px -75% 0px" });
for (const section of all("main > section")) here.observe(section);
