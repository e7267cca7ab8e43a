"use strict";
// The gain of calls: its distribution by tool, with a threshold to move and what merge keeps there.

const BINS = 40;

function gainSection(annotation, columns) {
  const { tools, calls } = annotation;
  if (!calls.number) return null;
  const byTool = tools.map((_, number) => Array.from(columns.gain.filter((_, i) => columns.tool[i] === number)));
  const update = [];
  const cards = tools.map((tool, number) => (byTool[number].length ? gainCard(tool, number, byTool[number], update) : null));
  const estimate = columns.sampled < 1 ? "about " : "";
  const scale = 1 / columns.sampled;
  const total = el("p", { class: "total", role: "status" });
  const command = el("code", { id: "merge-command" });
  const copied = el("span", { class: "soft", role: "status" });
  const highest = Math.max(...byTool.flatMap((gains) => gains.slice().sort((a, b) => b - a).slice(0, 1)), 0.1);
  const lowest = Math.min(...tools.map((tool) => tool.tau_f));
  const all = { min: lowest, max: Math.max(lowest, Math.ceil(highest * 100) / 100), step: "0.01" };
  const setAll = (value) => thresholds.setAll(tools.map(() => value));
  const slider = el("input", { type: "range", id: "tau-all", ...all, value: lowest, "aria-describedby": "tau-note",
    oninput: (event) => setAll(Number(event.target.value)) });
  const number = el("input", { type: "number", ...all, value: lowest, "aria-label": "Threshold of all tools, as a number",
    onchange: (event) => event.target.value !== "" && setAll(Number(event.target.value)) });
  slider.addEventListener("input", () => { number.value = slider.value; });
  number.addEventListener("change", () => { slider.value = number.value; });
  const reset = () => {
    thresholds.setAll(thresholds.lowest);
    slider.value = number.value = lowest;
  };
  thresholds.follow(() => {
    const counts = countKept(columns, thresholds.values);
    const at = (value) => estimate + whole(Math.round(value * scale));
    total.replaceChildren("C* at these thresholds: ", el("strong", { id: "total-texts" }, at(counts.total.texts)),
      " texts with ", el("strong", { id: "total-calls" }, at(counts.total.inserted)), " calls");
    update.forEach((card) => card(counts, at));
    command.textContent = mergeCommand(annotation, thresholds.values);
  });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
    } catch {
      getSelection().selectAllChildren(command); // a page from a disk may not write to the clipboard
      copied.textContent = document.execCommand("copy") ? "copied" : "selected: copy it with Ctrl+C";
      return;
    }
    copied.textContent = "copied";
  };
  return section("gain", "Gain, and which threshold",
    "The gain of a call is how much it lowers the loss of the text after it, in nats. Move a threshold τ_f to see what merge would keep there.",
    columns.sampled < 1 ? notes([`Counts are estimates from ${percent(columns.sampled)} of the texts: the run has too many calls for a page.`]) : null,
    el("div", { class: "panel chooser" },
      el("div", { class: "controls" },
        el("label", { class: "field wide", for: "tau-all" }, "τ_f of all tools"), slider, number,
        el("button", { type: "button", onclick: reset }, "Reset")),
      total,
      el("div", { class: "command" }, el("pre", {}, command),
        el("button", { type: "button", onclick: copy }, "Copy"), copied),
      el("p", { class: "soft", id: "tau-note" },
        "A threshold below the annotation's own is not offered: gains below it may be upper bounds, drawn in grey. Charts show the number of calls in log scale. ",
        `Counted as merge counts: one call per tool and position, at most ${whole(calls.max_examples)} texts per tool`,
        calls.one_call_per_position ? ", one call per position." : ".")),
    el("div", { class: "cards" }, cards));
}

/** Edges of bins of equal width, one of which is tau_f. */
function binEdges(gains, tauF) {
  const sorted = gains.slice().sort((a, b) => a - b);
  const low = Math.min(sorted[Math.floor(sorted.length / 200)], tauF);
  const high = Math.max(sorted.at(-1), tauF);
  const width = Math.max(0.01, Number(((high - low) / BINS).toPrecision(1)));
  const first = Math.floor((low - tauF) / width - 1e-9);
  const last = Math.max(1, Math.ceil((high - tauF) / width + 1e-9));
  return Array.from({ length: last - first + 1 }, (_, place) => Number((tauF + (first + place) * width).toFixed(6)));
}

function binCounts(gains, edges) {
  const width = edges[1] - edges[0];
  const counts = new Array(edges.length - 1).fill(0);
  for (const gain of gains) {
    // A bin has its lower edge; what lies below all bins is in the first.
    let place = Math.max(0, Math.min(counts.length - 1, Math.floor((gain - edges[0]) / width)));
    if (place > 0 && gain < edges[place]) place -= 1;
    if (place + 1 < counts.length && gain >= edges[place + 1]) place += 1;
    counts[place] += 1;
  }
  return counts;
}

function gainCard(tool, number, gains, update) {
  const edges = binEdges(gains, tool.tau_f);
  const counts = binCounts(gains, edges);
  const [low, high] = [edges[0], edges.at(-1)];
  const range = { min: tool.tau_f, max: high, step: "0.01" };
  const set = (value) => thresholds.set(number, value);
  const slider = el("input", { type: "range", ...range, value: tool.tau_f, "aria-label": `Threshold of ${tool.tool}`,
    oninput: (event) => set(Number(event.target.value)) });
  const input = el("input", { type: "number", ...range, value: tool.tau_f, "data-tool": tool.tool,
    onchange: (event) => (event.target.value === "" ? (input.value = thresholds.values[number]) : set(Number(event.target.value))) });
  const kept = el("p", { class: "kept", role: "status" });
  const tint = (name) => ({ fill: () => colour(name), width: 0, paths: bars(), points: { show: false } });
  const below = counts.map((value, place) => (edges[place] < tool.tau_f ? value : null));
  const above = counts.map((value, place) => (edges[place] < tool.tau_f ? null : value));
  const figure = chart(`Distribution of the gain of ${tool.tool}: ${count(gains.length, "call")}, from ${decimal(Math.min(...gains))} to ${decimal(Math.max(...gains))} nats`, 150, {
    scales: { x: { time: false, range: [low, high] }, y: { distr: 4, asinh: 1, range: (_, least, most) => [0, Math.max(1, most) * 1.3] } },
    axes: [
      { size: 22, grid: { show: false } },
      { size: 40, splits: countTicks, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : COMPACT.format(tick))) },
    ],
    series: [{}, tint("--series-none"), tint(`--series-${number % PALETTE}`)],
    hooks: { draw: [(plot) => drawThreshold(plot, low, number, tool.tau_f)] },
  }, [edges.slice(0, -1), below, above],
  { readout: (at) => `${at === 0 && Math.min(...gains) < low ? "below" : `${decimal(edges[at])} to`} ${decimal(edges[at + 1])} nats: ${count(counts[at], "call")}`, over: true });
  const { plot } = figure;
  const align = () => {
    const from = plot.over.offsetLeft + plot.valToPos(tool.tau_f, "x");
    slider.style.marginLeft = `${from - 8}px`; // half a thumb
    slider.style.width = `${plot.valToPos(high, "x") - plot.valToPos(tool.tau_f, "x") + 16}px`;
  };
  plot.hooks.draw.push(align);
  const drag = (event) => set(Math.min(high, Math.round(100 * plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x")) / 100));
  plot.over.addEventListener("pointerdown", (event) => {
    plot.over.setPointerCapture(event.pointerId);
    drag(event);
  });
  plot.over.addEventListener("pointermove", (event) => plot.over.hasPointerCapture(event.pointerId) && drag(event));
  update.push(({ tools }, at) => {
    const { calls, candidates, examples, inserted } = tools[number];
    const value = thresholds.values[number];
    if (Number(slider.value) !== value) slider.value = value;
    if (Number(input.value) !== value) input.value = value;
    slider.setAttribute("aria-valuetext", `${value} nats`);
    kept.replaceChildren(el("strong", {}, at(calls)), " calls in ", el("strong", {}, at(candidates)), " texts; in C*: ",
      el("strong", {}, at(inserted)), " calls in ", el("strong", {}, at(examples)), " texts");
    kept.dataset.counts = [calls, candidates, inserted, examples].join(" ");
    plot.redraw(false, false);
  });
  return el("div", { class: "card gain" },
    el("h3", {}, swatch(number), tool.tool, el("label", {}, "τ_f", input)), figure, slider, kept);
}

/** Fade what the threshold drops and draw a line at it. */
function drawThreshold(plot, low, number, tauF) {
  const { ctx, bbox } = plot;
  const at = plot.valToPos(thresholds.values[number] ?? tauF, "x", true);
  const from = plot.valToPos(tauF, "x", true);
  ctx.save();
  ctx.globalAlpha = 0.72;
  ctx.fillStyle = colour("--card");
  ctx.fillRect(from, bbox.top, Math.max(0, at - from), bbox.height);
  ctx.restore();
  verticalLine(plot, thresholds.values[number] ?? tauF, null);
}
