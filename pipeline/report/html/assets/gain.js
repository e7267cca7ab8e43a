"use strict";
// The gain of calls: its distribution with thresholds to choose, against p(<API>), and what each tool is worth.

const BINS = 40;
const POWERS = [1e-6, 1e-5, 0.0001, 0.001, 0.01, 0.1, 1];
const POINTS = 6_000; // drawn in the scatter chart, of all tools together

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
      { size: 40, splits: countTicks, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : scaled(tick))) },
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

function scatterSection(annotation, columns) {
  const { tools, contexts } = annotation;
  if (!columns.number) return null;
  const step = Math.max(1, columns.number / POINTS);
  const points = [];
  for (let place = 0; place < columns.number; place += step) {
    const i = Math.floor(place);
    points.push({ tool: columns.tool[i], p: columns.p_api[i], gain: columns.gain[i], context: null });
  }
  const numbers = new Map(tools.map((tool, number) => [tool.tool, number]));
  contexts.forEach((call, index) =>
    points.push({ tool: numbers.get(call.tool), p: call.p_api, gain: call.gain, context: index }));
  const shown = tools.map(() => true);
  const [floor, ceiling] = [POWERS[0], 1];
  const gains = points.map((point) => point.gain).sort((a, b) => a - b);
  const range = [Math.min(0, gains[Math.floor(gains.length / 500)]) - 0.3, Math.max(1, gains.at(-1)) + 0.3];
  const chosen = el("div", { class: "panel", hidden: true, role: "status" });
  const place = (plot, point) => [
    plot.valToPos(Math.max(floor, point.p), "x", true), plot.valToPos(Math.max(range[0], point.gain), "y", true),
  ];
  const draw = (plot) => {
    const { ctx } = plot;
    ctx.save();
    for (const point of points) {
      if (!shown[point.tool]) continue;
      const [x, y] = place(plot, point);
      const size = (point.context === null ? 2.2 : 4) * devicePixelRatio;
      ctx.globalAlpha = point.context === null ? 0.35 : 0.9;
      ctx.fillStyle = colour(`--series-${point.tool % PALETTE}`);
      ctx.setTransform(size, 0, 0, size, x, y);
      ctx.fill(paths[point.tool % paths.length]);
    }
    ctx.restore();
  };
  const paths = SHAPES.map((shape) => new Path2D(shape));
  const figure = chart(`p(<API>) against gain of ${count(points.length, "call")}`, 380, {
    scales: { x: { time: false, distr: 3, range: [floor / 1.5, ceiling * 1.5] }, y: { range } },
    axes: [
      { label: "p(<API>), log scale", size: 24, splits: () => POWERS, values: (_, ticks) => ticks.map((tick) => (tick === 1e-6 ? "≤ 10⁻⁶" : String(tick))) },
      { label: "gain, nats", size: 44 },
    ],
    series: [{}, { points: { show: false } }],
    hooks: { draw: [draw] },
  }, [[floor, ceiling], [null, null]]);
  const { plot } = figure;
  const nearest = (event, only) => {
    const box = plot.over.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let distance = 24 ** 2;
    for (const point of points) {
      if (!shown[point.tool] || (only && point.context === null)) continue;
      const x = plot.valToPos(Math.max(floor, point.p), "x") - left;
      const y = plot.valToPos(Math.max(range[0], point.gain), "y") - top;
      if (x * x + y * y < distance) {
        distance = x * x + y * y;
        best = point;
      }
    }
    return best;
  };
  const words = el("p", { class: "readout", "aria-hidden": "true" }, "\u00a0");
  plot.over.addEventListener("pointermove", (event) => {
    const point = nearest(event, false);
    plot.over.classList.toggle("opens", Boolean(point && point.context !== null));
    words.textContent = point
      ? `${tools[point.tool].tool}: p(<API>) ${probability(point.p)}, gain ${signed(point.gain)}${point.context === null ? "" : `; ${contexts[point.context].call.trim()}`}`
      : "\u00a0";
  });
  plot.over.addEventListener("click", (event) => {
    const point = nearest(event, true);
    if (!point) return;
    chosen.hidden = false;
    chosen.replaceChildren(callCard(annotation, contexts[point.context], { open: true }));
  });
  const keys = tools.map((tool, number) => el("label", { class: "key" },
    el("input", { type: "checkbox", checked: true, onchange: (event) => {
      shown[number] = event.target.checked;
      plot.redraw(false, false);
    } }), swatch(number), tool.tool));
  const sampledWords = step > 1 ? ` ${whole(Math.ceil(columns.number / step))} of ${whole(columns.number)} calls are drawn.` : "";
  return section("probability", "Probability against gain",
    `How likely the model was to call at a position, p(<API>), against what the call was worth there.${sampledWords} Large points can be opened; the list below has them too.`,
    el("div", { class: "keys" }, keys), figure, words, chosen);
}

function valueSection(annotation, columns) {
  const { tools } = annotation;
  const flops = tools.reduce((sum, tool) => sum + (tool.flops || 0), 0);
  const lines = tools.map((tool, number) => {
    const gains = Array.from(columns.gain.filter((gain, i) => columns.tool[i] === number && gain >= tool.tau_f)).sort((a, b) => b - a);
    if (!gains.length) return null;
    const step = Math.max(0.01, (gains[0] - tool.tau_f) / 100);
    const xs = Array.from({ length: 102 }, (_, place) => Number((tool.tau_f + place * step).toFixed(4)));
    let sum = 0;
    let next = 0;
    const ys = xs.map(() => 0);
    for (let place = xs.length - 1; place >= 0; place--) {
      while (next < gains.length && gains[next] >= xs[place]) sum += gains[next++];
      ys[place] = sum / columns.sampled;
    }
    return { name: tool.tool, xs, ys, number };
  }).filter(Boolean);
  const row = (tool, number) => {
    let calls = 0;
    let gain = 0;
    for (let i = 0; i < columns.number; i++) {
      if (columns.tool[i] === number && columns.gain[i] >= thresholds.values[number]) {
        calls += 1;
        gain += columns.gain[i];
      }
    }
    return { tool, number, calls: Math.round(calls / columns.sampled), gain: gain / columns.sampled };
  };
  const rows = table("Value and cost of each tool", [
    { title: "tool", value: (entry) => entry.tool.tool, cell: (entry) => [swatch(entry.number), entry.tool.tool] },
    { title: "τ_f", numeric: true, value: (entry) => thresholds.values[entry.number], cell: (entry) => String(thresholds.values[entry.number]) },
    { title: "kept calls", numeric: true, value: (entry) => entry.calls, cell: (entry) => whole(entry.calls) },
    { title: "gain kept, nats", numeric: true, value: (entry) => entry.gain, cell: (entry) => decimal(entry.gain, 0) },
    { title: "largest gain", numeric: true, value: (entry) => entry.tool.largest_gain ?? -1e9,
      cell: (entry) => (entry.tool.largest_gain_is_bound ? "≤ " : "") + decimal(entry.tool.largest_gain) },
    { title: "FLOPs", numeric: true, value: (entry) => entry.tool.flops ?? -1, cell: (entry) => scaled(entry.tool.flops) },
    { title: "share of the cost", numeric: true, value: (entry) => entry.tool.flops ?? -1,
      cell: (entry) => (entry.tool.flops === null ? MISSING : [percent(entry.tool.flops / flops), bar(entry.tool.flops / flops, cssColour(entry.number))]) },
    { title: "FLOPs per kept call", numeric: true, value: (entry) => (entry.calls ? (entry.tool.flops ?? -1) / entry.calls : Infinity),
      cell: (entry) => (entry.tool.flops === null || !entry.calls ? MISSING : scaled(entry.tool.flops / entry.calls)) },
  ], []);
  thresholds.follow(() => rows.show(tools.map(row)));
  return section("value", "What each tool is worth",
    "Sum of the gains of all calls at or above a threshold, one call per tool and position, before the cap. The table follows the thresholds chosen above.",
    lines.length ? legendOf(lines) : null,
    lines.length ? stepLines(lines) : null, rows);
}

const legendOf = (lines) =>
  el("ul", { class: "legend" }, lines.map(({ name, number }) => el("li", {}, swatch(number, { line: true }), name)));

function stepLines(lines) {
  const figure = lineChart("Gain kept by tool as a function of the threshold", "τ_f", "gain kept, nats", lines, {
    format: (value) => scaled(Math.round(value)),
  });
  return figure;
}
