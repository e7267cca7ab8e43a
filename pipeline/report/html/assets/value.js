"use strict";
// What each tool is worth: the gain that a threshold keeps, and the cost.

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
    { title: "gain kept, nats", numeric: true, value: (entry) => entry.gain, cell: (entry) => whole(entry.gain) },
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
    lines.length ? valueLines(lines) : null, rows);
}

const valueLines = (lines) => lineChart("Gain kept by tool as a function of the threshold", "τ_f", "gain kept, nats", lines, {
  format: (value) => COMPACT.format(Math.round(value)),
});
