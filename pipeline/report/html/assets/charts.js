"use strict";
// Charts: colours and shapes of the tools, uPlot with the page's colours, sizes and labels.

const PALETTE = 6;
const SHAPES = [
  "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0-1 0Z", // circle
  "M-.9-.9H.9V.9H-.9Z", // square
  "M0-1.15 1.1.85H-1.1Z", // triangle
  "M0-1.3 1.3 0 0 1.3-1.3 0Z", // diamond
  "M-1.1-.35H-.35V-1.1H.35V-.35H1.1V.35H.35V1.1H-.35V.35H-1.1Z", // plus
  "M0 1.15 1.1-.85H-1.1Z", // triangle upside down
];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 2], [1, 2]];
const FONT = "12px system-ui, sans-serif";

const cssColour = (number) => `var(--series-${number % PALETTE})`;
const shapeOf = (number) => SHAPES[number % SHAPES.length];

/** The value of a colour of the style sheet in the theme of the moment, as canvases need it. */
const resolved = new Map();
function colour(name) {
  if (!resolved.has(name)) {
    const probe = el("span", { hidden: true });
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    resolved.set(name, getComputedStyle(probe).color);
    probe.remove();
  }
  return resolved.get(name);
}

/** A small drawing of a series' colour, shape and, for lines, dashes. */
function swatch(number, { line = false } = {}) {
  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", line ? "-12 -6 24 12" : "-6 -6 12 12");
  svg.setAttribute("class", line ? "swatch line" : "swatch");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  if (line) {
    path.setAttribute("d", "M-12 0H12");
    path.setAttribute("stroke-dasharray", DASHES[number % DASHES.length].join(" "));
    path.style.stroke = cssColour(number);
    path.setAttribute("stroke-width", "2.5");
  } else {
    path.setAttribute("d", shapeOf(number));
    path.setAttribute("transform", "scale(4.4)");
    path.style.fill = cssColour(number);
  }
  svg.append(path);
  return svg;
}

const legend = (names, options) =>
  el("ul", { class: "legend" }, names.map((name, number) => el("li", {}, swatch(number, options), name)));

const legendOf = (lines) =>
  el("ul", { class: "legend" }, lines.map(({ name, number }) => el("li", {}, swatch(number, { line: true }), name)));

const charts = [];

/**
 * A chart with a label for those who cannot see it and a line of text about the place under the pointer.
 * `options` are uPlot's; `readout` gives the text of a place in the data, `over` puts it over the
 * chart where it has room at its top.
 */
function chart(label, height, options, data, { readout = null, over = false } = {}) {
  const place = el("div", { class: "plot", role: "img", "aria-label": label });
  const words = readout ? el("p", { class: over ? "readout over" : "readout", "aria-hidden": "true" }, "\u00a0") : null;
  const figure = el("figure", { class: "chart" }, place, words);
  const settings = {
    width: 600,
    height,
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { show: false }, y: false },
    ...options,
    axes: options.axes.map(withColours),
    hooks: { ...options.hooks },
  };
  if (readout) {
    settings.hooks.setCursor = [(plot) => {
      const { idx, left } = plot.cursor;
      words.textContent = idx === null || idx === undefined || left < 0 ? "\u00a0" : readout(idx) || "\u00a0";
    }];
  }
  const plot = new uPlot(settings, data, place);
  const fit = (width) => {
    if (width > 0 && Math.round(width) !== plot.width) plot.setSize({ width: Math.round(width), height });
  };
  new ResizeObserver(() => fit(place.clientWidth)).observe(place);
  charts.push({ plot, place, fit });
  figure.plot = plot;
  return figure;
}

function withColours(axis) {
  return {
    stroke: () => colour("--soft"),
    font: FONT,
    labelFont: FONT,
    labelSize: 16,
    labelGap: 2,
    ticks: { stroke: () => colour("--rule"), width: 1, size: 4 },
    gap: 4,
    ...axis,
    grid: { stroke: () => colour("--rule"), width: 1, ...axis.grid },
  };
}

/** Draw all charts again, after the colours have changed. */
function redrawCharts() {
  resolved.clear();
  for (const { plot } of charts) if (plot.status === 1) plot.redraw(); // others are not drawn yet
}

/** Paper has its own width; canvases do not follow the style sheet's. */
function fitCharts(width) {
  for (const { place, fit } of charts) fit(width === null ? place.clientWidth : Math.min(width, place.clientWidth));
}

/** Ticks of an axis of counts in log scale. */
function countTicks(_, __, low, high) {
  const ticks = [0];
  const steps = high > 60 ? [1] : [1, 2, 5];
  for (let power = 1; power <= high; power *= 10) ticks.push(...steps.map((step) => step * power).filter((tick) => tick <= high));
  return ticks;
}

const bars = (align = 1) => uPlot.paths.bars({ size: [1, Infinity], align, gap: 1 });

/** Axes of a chart with titles. */
const axes = (x, y, { size = 52, format = null } = {}) => [
  { label: x || undefined, size: 24, grid: { show: false } },
  { label: y || undefined, size, values: format ? (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))) : undefined },
];

/** Lines over a shared x: `lines` are {name, xs, ys, number (of its colour)}. */
function lineChart(label, x, y, lines, { height = 260, log = false, readout = null, format = COMPACT.format, marks = [] } = {}) {
  const joined = uPlot.join(lines.map((line) => [line.xs, line.ys]));
  const series = lines.map((line) => ({
    label: line.name,
    stroke: () => colour(`--series-${line.number % PALETTE}`),
    dash: DASHES[line.number % DASHES.length],
    width: 2,
    spanGaps: true,
    points: { show: line.xs.length === 1 },
  }));
  const options = {
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: axes(x, y, { format }),
    series: [{}, ...series],
    hooks: { draw: [(plot) => marks.forEach((mark) => verticalLine(plot, mark.x, mark.number))] },
  };
  const words = readout || ((idx) => {
    const values = lines.map((line, place) => [line.name, joined[place + 1][idx]]);
    const known = values.filter(([, value]) => value !== null && value !== undefined);
    return `${x} ${joined[0][idx]}: ${known.map(([name, value]) => `${name} ${format(value)}`).join(", ")}`;
  });
  return chart(label, height, options, joined, { readout: words });
}

function verticalLine(plot, x, number) {
  const { ctx, bbox } = plot;
  const left = plot.valToPos(x, "x", true);
  ctx.save();
  ctx.strokeStyle = number === null ? colour("--ink") : colour(`--series-${number % PALETTE}`);
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.setLineDash([]);
  ctx.beginPath();
  ctx.moveTo(left, bbox.top);
  ctx.lineTo(left, bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}
