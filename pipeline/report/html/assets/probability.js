"use strict";
// p(<API>) of calls against their gain, as points that open their calls.

const POINTS = 6_000; // drawn in the scatter chart, of all tools together
const [LEAST, MOST] = [1e-6, 0.999]; // of the axis of probabilities
const PROBABILITIES = [LEAST, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, MOST];
const logit = (p) => Math.log(Math.max(LEAST, Math.min(MOST, p)) / (1 - Math.max(LEAST, Math.min(MOST, p))));

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
  const gains = points.map((point) => point.gain).sort((a, b) => a - b);
  const range = [Math.min(0, gains[Math.floor(gains.length / 500)]) - 0.3, Math.max(1, gains.at(-1)) + 0.3];
  const chosen = el("div", { class: "panel", hidden: true, role: "status" });
  const place = (plot, point) => [
    plot.valToPos(logit(point.p), "x", true), plot.valToPos(Math.max(range[0], point.gain), "y", true),
  ];
  const draw = (plot) => {
    const { ctx } = plot;
    ctx.save();
    for (const point of points) {
      if (!shown[point.tool]) continue;
      const [x, y] = place(plot, point);
      const size = (point.context === null ? 2.2 : 3.5) * devicePixelRatio;
      ctx.globalAlpha = point.context === null ? 0.35 : 0.9;
      ctx.fillStyle = colour(`--series-${point.tool % PALETTE}`);
      ctx.setTransform(size, 0, 0, size, x, y);
      ctx.fill(paths[point.tool % paths.length]);
    }
    ctx.restore();
  };
  const paths = SHAPES.map((shape) => new Path2D(shape));
  const figure = chart(`p(<API>) against gain of ${count(points.length, "call")}`, 380, {
    scales: { x: { time: false, range: [logit(LEAST) - 0.4, logit(MOST) + 0.4] }, y: { range } },
    axes: [
      { label: "p(<API>), log-odds scale", size: 24, splits: () => PROBABILITIES.map(logit),
        values: () => PROBABILITIES.map((p) => (p === LEAST ? "≤ 10⁻⁶" : p === MOST ? "≥ 0.999" : String(p))) },
      { label: "gain, nats", size: 44 },
    ],
    series: [{}, { points: { show: false } }],
    hooks: { draw: [draw] },
  }, [[logit(LEAST), logit(MOST)], [null, null]]);
  const { plot } = figure;
  const nearest = (event, only) => {
    const box = plot.over.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let distance = 24 ** 2;
    for (const point of points) {
      if (!shown[point.tool] || (only && point.context === null)) continue;
      const x = plot.valToPos(logit(point.p), "x") - left;
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
