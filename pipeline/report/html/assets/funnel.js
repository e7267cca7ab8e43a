"use strict";
// From texts to kept calls, what was lost on the way, where calls stand, and what the model's work cost.

const STAGES = {
  selected: ["texts", "Texts that the tool's selection rule admits"],
  positions: ["positions", "Places with a p(<API>) above τ_s, at most k a text"],
  draws: ["draws", "Calls sampled from the model, m at each position"],
  candidates: ["calls", "Different calls among the draws that could be read"],
  executed: ["results", "Calls that the tool answered"],
  scored: ["scored", "Calls whose losses were computed"],
  kept: ["kept", "Calls whose gain is at least τ_f"],
};
const PHASES = {
  prompt: "prompts of the tools", positions: "p(<API>) at every position", decode: "sampling calls",
  empty: "L⁻(∅), without a call", plus: "L⁺, with call and result", call: "L⁻(call), without the result",
};
/** The stage of the funnel at which a reason takes something away. */
const LOST_AT = {
  "not selected": "selected", "discarded draw": "candidates", "no result": "executed", "not scored": "scored",
};

function funnelSection(annotation) {
  const { tools, reasons } = annotation;
  const names = [...new Set(tools.flatMap((tool) => tool.stages.map((stage) => stage.name)))];
  const largest = Math.log10(Math.max(10, ...tools.flatMap((tool) => tool.stages.map((stage) => stage.count))));
  const panel = el("div", { class: "panel", id: "lost", hidden: true, tabindex: "-1" });
  let open = null;
  const explain = (button, tool, name, lost) => {
    const same = open === button;
    if (open) open.setAttribute("aria-expanded", "false");
    open = same ? null : button;
    panel.hidden = same;
    if (same) return;
    button.setAttribute("aria-expanded", "true");
    const total = lost.reduce((sum, reason) => sum + reason.count, 0);
    panel.replaceChildren(
      el("h3", {}, `${tool.tool}: lost before “${(STAGES[name] || [name])[0]}”`),
      el("ul", { class: "reasons" }, [...lost].sort((a, b) => b.count - a.count).map((reason) => el("li", {},
        el("strong", {}, count(reason.count, reason.unit.replace(/s$/, ""))), ` ${reason.meaning} `,
        reason.advice ? el("span", { class: "soft" }, reason.advice) : null, bar(reason.count / total)))));
  };
  const cell = (name) => (tool) => {
    const at = tool.stages.findIndex((stage) => stage.name === name);
    if (at < 0) return MISSING;
    const { count: here } = tool.stages[at];
    const before = at ? tool.stages[at - 1].count : null;
    const ratio = before ? here / before : null;
    const lost = reasons.filter((reason) => reason.tool === tool.tool && LOST_AT[reason.stage] === name);
    const button = lost.length
      ? el("button", { type: "button", class: "link", "aria-expanded": "false", "aria-controls": "lost",
        "aria-label": `What was lost: ${tool.tool}, before ${(STAGES[name] || [name])[0]}`,
        onclick: (event) => explain(event.currentTarget, tool, name, lost) },
      `−${whole(lost.reduce((sum, reason) => sum + reason.count, 0))}`)
      : null;
    return [
      el("span", { class: "figure" }, whole(here)),
      bar(here ? Math.max(0.02, Math.log10(here + 1) / largest) : 0, cssColour(tools.indexOf(tool))),
      el("span", { class: "share soft" }, ratio === null ? "" : ratio > 1 ? `× ${ratio.toFixed(1)}` : percent(ratio), " ", button),
    ];
  };
  const columns = [
    { title: "tool", cell: (tool) => [swatch(tools.indexOf(tool)), tool.tool,
      el("span", { class: "share soft" }, `τ_s ${tool.tau_s}, k ${tool.k}, m ${tool.m}, τ_f ${tool.tau_f}`)] },
    ...names.map((name) => ({ title: (STAGES[name] || [name])[0], hint: (STAGES[name] || [])[1], cell: cell(name) })),
  ];
  return section("funnel", "From texts to kept calls",
    "Each stage with its share of the stage before. Bars are in log scale. Select a number with a minus sign to read what was lost there.",
    el("div", { class: "funnel" }, table("Funnel by tool", columns, tools)), panel);
}

function droppedSection(annotation) {
  if (!annotation.reasons.length) return null;
  const tools = [...new Set(annotation.reasons.map((reason) => reason.tool))];
  const most = Math.max(...annotation.reasons.map((reason) => reason.count));
  const columns = [
    { title: "count", numeric: true, value: (reason) => reason.count,
      cell: (reason) => [count(reason.count, reason.unit.replace(/s$/, "")), bar(Math.log1p(reason.count) / Math.log1p(most))] },
    { title: "tool", value: (reason) => reason.tool || "", cell: (reason) => reason.tool || "all" },
    { title: "stage", value: (reason) => reason.stage, cell: (reason) => reason.stage },
    { title: "what happened", value: (reason) => reason.meaning,
      cell: (reason) => [reason.meaning, reason.meaning === reason.reason ? null : el("code", { class: "reason" }, reason.reason)] },
    { title: "what to change", cell: (reason) => reason.advice || el("span", { class: "soft" }, "nothing: this is usual") },
  ];
  const rows = table("Reasons for what was dropped", columns, annotation.reasons, { sortedBy: 0 });
  const filter = choice("Tool", [["*", "all tools"], ...tools.map((tool) => [tool ?? "", tool ?? "of the text itself"])],
    (value) => rows.show(annotation.reasons.filter((reason) => value === "*" || (reason.tool ?? "") === value)));
  return section("dropped", "What was dropped, and why", "Every text, draw and call that did not go on, by reason. Bars are in log scale.",
    el("div", { class: "controls" }, filter), el("div", { class: "dropped" }, rows));
}

function placementSection(annotation) {
  const placements = annotation.placements.filter((placement) => placement.in_text.counts.some((number) => number > 0));
  if (!placements.length) return null;
  const number = (tool) => annotation.tools.findIndex((other) => other.tool === tool);
  const cards = placements.map(({ tool, in_text: { edges, counts }, places }) => {
    const total = Object.values(places).reduce((sum, value) => sum + value, 0);
    const figure = chart(`Where kept calls of ${tool} stand in their texts, from start to end`, 120, {
      scales: { x: { time: false, range: [edges[0], edges.at(-1)] }, y: { range: (_, low, high) => [0, Math.max(1, high) * 1.25] } },
      axes: [
        { size: 22, grid: { show: false }, values: (_, ticks) => ticks.map((tick) => percent(tick)) },
        { size: 44, values: (_, ticks) => ticks.map((tick) => COMPACT.format(tick)) },
      ],
      series: [{}, { fill: () => colour(`--series-${number(tool) % PALETTE}`), width: 0, paths: bars(), points: { show: false } }],
    }, [edges.slice(0, -1), counts],
    { readout: (at) => `${percent(edges[at])} to ${percent(edges[at + 1])}: ${count(counts[at], "call")}`, over: true });
    const lines = Object.entries(places).sort((a, b) => b[1] - a[1]).map(([name, value]) => el("li", {},
      el("span", {}, name), bar(value / total, cssColour(number(tool))),
      el("span", { class: "figure" }, `${whole(value)} (${percent(total ? value / total : 0)})`)));
    return el("div", { class: "card" }, el("h3", {}, swatch(number(tool)), tool), figure, el("ul", { class: "places" }, lines));
  });
  return section("placement", "Where calls stand",
    "Position of kept calls in their texts, from the start (0 %) to the end (100 %), and the characters around them.",
    el("div", { class: "cards" }, cards));
}

function costSection(annotation) {
  const { costs, sessions, flops_per_s: rate } = annotation;
  if (!costs.length && !sessions.length) return null;
  const sum = (rows, field) => rows.reduce((total, row) => total + (row[field] || 0), 0);
  const measured = costs.some((cost) => cost.flops !== null);
  const unit = measured ? "flops" : "tokens";
  const least = measured ? "lower_bound_flops" : "lower_bound_tokens";
  const group = (key, rows) => Object.entries(groupBy(rows, key))
    .map(([name, members]) => ({ name, members }));
  const columnsFor = (rows, title, cell) => {
    const most = Math.max(1, ...rows.map(({ members }) => sum(members, unit)));
    const all = rows.reduce((total, { members }) => total + sum(members, unit), 0);
    return [
      { title, value: (row) => row.name, cell },
      { title: measured ? "FLOPs" : "tokens", hint: "The mark shows the lower bound", numeric: true,
        value: ({ members }) => sum(members, unit),
        cell: ({ members }) => [scaled(sum(members, unit)), bar(sum(members, unit) / most, null, sum(members, least) / most)] },
      { title: "share", numeric: true, value: ({ members }) => sum(members, unit),
        cell: ({ members }) => percent(all ? sum(members, unit) / all : null) },
      { title: "of the lower bound", numeric: true, value: ({ members }) => sum(members, unit) / (sum(members, least) || 1),
        cell: ({ members }) => (sum(members, least) ? `× ${(sum(members, unit) / sum(members, least)).toFixed(2)}` : MISSING) },
      { title: "tokens", numeric: true, value: ({ members }) => sum(members, "tokens"), cell: ({ members }) => whole(sum(members, "tokens")) },
      { title: "padding", numeric: true, hint: "Padding as a share of all computed tokens",
        value: ({ members }) => sum(members, "padding"),
        cell: ({ members }) => percent(sum(members, "padding") / (sum(members, "tokens") + sum(members, "padding") || 1)) },
    ];
  };
  const phases = group((cost) => cost.phase, costs);
  const both = costs.map((cost) => ({ name: `${cost.tool || "all tools"}: ${PHASES[cost.phase] || cost.phase}`, members: [cost] }));
  const walls = sessions.filter((session) => session.wall_s !== null);
  const sentence = [
    walls.length ? `${duration(sum(walls, "wall_s"))} in ${count(walls.length, "session")}` : null,
    rate ? `${scaled(rate, "FLOP/s")} over all sessions, starts and waiting included` : null,
  ].filter(Boolean).join("; ");
  return section("cost", "Cost",
    `Work of the model by phase, beside the least that the method needs. ${sentence ? `${sentence}.` : ""}`,
    costs.length ? table("Cost by phase", columnsFor(phases, "phase", (row) => PHASES[row.name] || row.name), phases) : null,
    costs.length ? details("By tool and phase",
      table("Cost by tool and phase", columnsFor(both, "tool and phase", (row) => row.name), both, { sortedBy: 1 })) : null,
    sessions.length ? details("By session", table("Sessions", [
      { title: "started", value: (session) => session.started, cell: (session) => moment(session.started) },
      { title: "time", numeric: true, value: (session) => session.wall_s ?? -1,
        cell: (session) => (session.wall_s === null ? "stopped, or still running" : duration(session.wall_s)) },
    ], sessions)) : null);
}

function groupBy(rows, key) {
  const groups = {};
  for (const row of rows) (groups[key(row)] ||= []).push(row);
  return groups;
}
