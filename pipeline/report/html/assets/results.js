"use strict";
// C*, training runs and evaluations, beside the paper's figures.

const QUESTIONS_A_PAGE = 10;
const EXAMPLES_A_PAGE = 5;

function augmentedSection(augmented, toolNames) {
  const columns = [
    { title: "tool", value: (tool) => tool.tool, cell: (tool) => [swatch(toolNames.indexOf(tool.tool)), tool.tool] },
    { title: "τ_f", numeric: true, value: (tool) => tool.tau_f, cell: (tool) => String(tool.tau_f) },
    { title: "texts that keep a call", numeric: true, value: (tool) => tool.candidates, cell: (tool) => whole(tool.candidates) },
    { title: "texts in C*", numeric: true, value: (tool) => tool.examples, cell: (tool) => whole(tool.examples) },
    { title: "calls in C*", numeric: true, value: (tool) => tool.calls, cell: (tool) => whole(tool.calls) },
  ];
  const limits = [...new Set(augmented.tools.flatMap((tool) => Object.keys(tool.at)))];
  for (const limit of limits) {
    columns.push({ title: `texts at τ_f ${limit}`, numeric: true, value: (tool) => tool.at[limit] ?? -1,
      cell: (tool) => [whole(tool.at[limit]), el("span", { class: "share soft" }, `paper ${whole(tool.paper[limit])}`)] });
  }
  const list = el("div", { class: "examples" });
  const show = (from, to) => list.replaceChildren(...augmented.examples.slice(from, to).map((example) => {
    const body = el("p", { class: "text", dir: "auto" });
    const write = (plain) => body.replaceChildren(el("bdi", {}, ...(plain ? [example.plain] : withCalls(example.text, toolNames))));
    const toggle = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
      const plain = toggle.getAttribute("aria-pressed") === "false";
      toggle.setAttribute("aria-pressed", String(plain));
      write(plain);
    } }, "Without the calls");
    write(false);
    return el("article", { class: "call-card" }, el("div", { class: "top" },
      example.tools.map((tool) => el("span", { class: "tool" }, swatch(toolNames.indexOf(tool)), tool)), toggle), body);
  }));
  const pages = pager(EXAMPLES_A_PAGE, show);
  const reset = () => pages.reset(augmented.examples.length);
  reset();
  return section("augmented", "C*, the augmented corpus",
    `${whole(augmented.texts)} texts with ${whole(augmented.calls)} calls. Texts at other thresholds stand beside the paper's Table 2, whose corpus is a part of CCNet.`,
    notes(augmented.losses),
    table("C* by tool", columns, augmented.tools),
    augmented.examples.length ? [el("h3", {}, "Examples"), pages, list] : null, facts(augmented.facts));
}

const FIRST_CURVES = ["loss", "held-out loss", "held-out loss without calls", "perplexity"];
const WITHOUT_BEST = ["loss"];
const SPEED_CURVES = ["tokens per second", "FLOP/s of the model", "FLOP/s with recomputation", "FLOP utilisation", "memory in bytes", "seconds of a step"];
const STEP_CURVES = ["learning rate", "gradient norm"];

function trainingSection(trainings) {
  const names = [...new Set(trainings.flatMap((run) => run.curves.filter((curve) => curve.steps.length).map((curve) => curve.name)))];
  const lineOf = (run, name, label, number) => {
    const curve = run.curves.find((candidate) => candidate.name === name);
    return curve && curve.steps.length ? { name: label, xs: curve.steps, ys: curve.values, number } : null;
  };
  const card = (title, lines, marks, ...more) => {
    const format = title === "learning rate" ? (value) => value.toExponential(1)
      : title === "FLOP utilisation" ? percent
      : Math.max(...lines.flatMap((line) => line.ys)) >= 1e4 ? COMPACT.format : (value) => String(Number(value.toPrecision(4)));
    return el("div", { class: "card" }, el("h3", {}, title),
      lineChart(`${title} over optimizer steps: ${lines.map((line) => line.name).join(", ")}`, "step", "", lines, { height: 190, marks, format }), more);
  };
  const draw = (name) => {
    const best = SPEED_CURVES.includes(name) || STEP_CURVES.includes(name) || WITHOUT_BEST.includes(name) ? []
      : trainings.map((run, number) => ({ x: run.best_step, number })).filter((mark) => mark.x !== null);
    return card(name, trainings.map((run, number) => lineOf(run, name, run.name, number)).filter(Boolean), best);
  };
  // The values of a group, such as calls by tool, are the lines of one chart for each model.
  const groups = [...new Set(names.filter((name) => name.includes(": ")).map((name) => name.split(": ")[0]))];
  const drawGroup = (group) => trainings.map((run) => {
    const members = names.filter((name) => name.startsWith(`${group}: `));
    const lines = members.map((name, number) => lineOf(run, name, name.slice(group.length + 2), number)).filter(Boolean);
    return lines.length ? card(`${group}, ${run.name}`, lines, [], legendOf(lines)) : null;
  }).filter(Boolean);
  const known = [...FIRST_CURVES, ...STEP_CURVES, ...SPEED_CURVES];
  const single = names.filter((name) => !known.includes(name) && !name.includes(": "));
  const cards = (title, curves) => {
    const there = curves.filter((name) => names.includes(name));
    return there.length ? details(title, el("div", { class: "cards" }, there.map(draw))) : null;
  };
  return section("training", "Training",
    "One line per model. A vertical line stands at the step of the best checkpoint.",
    notes(trainings.flatMap((run) => run.losses.map((sentence) => `${run.name}: ${sentence}`))),
    legendOf(trainings.map((run, number) => ({ name: `${run.name}${run.state === "finished" ? "" : " (unfinished)"}`, number }))),
    el("div", { class: "cards" }, [...FIRST_CURVES.filter((name) => names.includes(name)), ...single].map(draw), groups.flatMap(drawGroup)),
    cards("Learning rate and gradient norm", STEP_CURVES),
    cards("Speed and memory", SPEED_CURVES),
    trainings.map((run) => facts(run.facts, `Settings of ${run.name}`)));
}

function evaluationSection(evaluation, toolNames) {
  const { benchmarks, rows, paper, compared_with: compared } = evaluation;
  const hasPaper = rows.some((row) => Object.values(row.scores).some((score) => score.paper !== null));
  return section("evaluation", "Evaluation",
    `Percent right with 95 % intervals${compared ? `; p of McNemar's test against ${compared}` : ""}.${hasPaper ? " Hollow diamonds are the paper's figures, for models of another size." : ""}`,
    notes(rows.flatMap((row) => row.losses.map((sentence) => `${row.label}: ${sentence}`))),
    legend(rows.map((row) => row.label)),
    el("div", { class: "dots" }, benchmarks.map((name) => dotPlot(name, rows))),
    scoreTable(benchmarks, rows, paper),
    details("Calls by tool, and calls that failed", callTables(benchmarks, rows)),
    evaluation.questions.length ? questionList(evaluation, toolNames) : null);
}

/** Dots with intervals, one line per model, on a scale from 0 to 100 percent. */
function dotPlot(benchmark, rows) {
  const lines = rows.map((row, number) => [row, row.scores[benchmark], number]).filter(([, score]) => score);
  const at = (element, value) => {
    element.style.left = `${Math.max(0, Math.min(100, value))}%`;
    return element;
  };
  return el("div", { class: "card" }, el("h3", {}, benchmark, el("span", { class: "soft" }, ` n = ${[...new Set(lines.map(([, score]) => whole(score.n)))].join(" or ")}`)),
    el("ul", { class: "dot-plot" }, lines.map(([row, score, number]) => {
      const track = el("span", { class: "track", "aria-hidden": "true" });
      if (score.low !== null && score.high !== null) {
        const interval = at(el("span", { class: "interval" }), score.low);
        interval.style.width = `${score.high - score.low}%`;
        interval.style.background = cssColour(number);
        track.append(interval);
      }
      if (score.paper !== null) track.append(at(el("span", { class: "paper", title: `paper: ${score.paper}` }), score.paper));
      const dot = at(el("span", { class: "dot" }), score.value);
      dot.append(swatch(number));
      track.append(dot);
      return el("li", {}, el("span", { class: "label" }, row.label), track, el("span", { class: "figure" }, decimal(score.value, 1)));
    })),
    el("div", { class: "scale soft", "aria-hidden": "true" }, el("span", {}, "0"), el("span", {}, "50"), el("span", {}, "100 %")));
}

function scoreTable(benchmarks, rows, paper) {
  const columns = [
    { title: "model", cell: (row) => (row.model ? row.label : el("span", { class: "soft" }, `${row.label} (paper)`)) },
    ...benchmarks.map((name) => ({ title: name, numeric: true, cell: (row) => scoreCell(row.scores[name]) })),
  ];
  if (rows.some((row) => row.perplexity !== null)) {
    columns.push({ title: "perplexity", numeric: true, cell: (row) => decimal(row.perplexity) });
  }
  return table("Results by model and benchmark", columns, [...rows, ...paper]);
}

function scoreCell(score) {
  if (score === undefined) return MISSING;
  if (typeof score === "number") return el("span", { class: "soft" }, decimal(score, 1));
  return [
    el("strong", {}, decimal(score.value, 1)),
    score.low === null ? null : el("span", { class: "share soft" }, `${decimal(score.low, 1)} to ${decimal(score.high, 1)}`),
    el("span", { class: "share soft" }, `calls on ${percent(score.n ? score.calls / score.n : 0)}`),
    score.p === null ? null : el("span", { class: "share soft" }, score.p < 0.001 ? "p < 0.001" : `p ${score.p.toFixed(3)}`),
    score.paper === null ? null : el("span", { class: "share soft" }, `paper ${decimal(score.paper, 1)}`),
  ];
}

function callTables(benchmarks, rows) {
  const counts = (entries) => Object.entries(entries || {}).sort((a, b) => b[1] - a[1]).map(([name, value]) => `${name} ${whole(value)}`).join(", ") || MISSING;
  return table("Calls by model", [
    { title: "model", cell: (row) => row.label },
    ...benchmarks.map((name) => ({ title: name, cell: (row) => counts(row.calls_by_tool[name]) })),
    { title: "failed calls", cell: (row) => counts(row.failed_calls) },
  ], rows);
}

function questionList({ questions, benchmarks, rows }, toolNames) {
  const filter = { benchmark: "*", label: "*", right: "*", words: "" };
  const list = el("ol", { class: "questions" });
  let found = [];
  const pages = pager(QUESTIONS_A_PAGE, (from, to) => list.replaceChildren(...found.slice(from, to).map((question) =>
    el("li", {}, el("article", { class: "call-card" },
      el("div", { class: "top" }, el("span", { class: question.right ? "whether yes" : "whether" }, question.right ? "✓ right" : "✗ wrong"),
        el("span", { class: "soft" }, `${question.benchmark}, ${question.label}`)),
      el("p", { class: "text", dir: "auto" }, el("bdi", { class: "soft" }, question.prompt), el("bdi", {}, ...withCalls(question.generated, toolNames))),
      el("p", { class: "soft" }, "right: ", el("bdi", {}, question.answers.join(" | "))))))));
  function refresh() {
    found = questions.filter((question) => (filter.benchmark === "*" || question.benchmark === filter.benchmark)
      && (filter.label === "*" || question.label === filter.label)
      && (filter.right === "*" || String(question.right) === filter.right)
      && `${question.prompt}\n${question.generated}`.toLowerCase().includes(filter.words));
    pages.reset(found.length);
  }
  const set = (name) => (value) => {
    filter[name] = value;
    refresh();
  };
  const search = el("input", { type: "search", oninput: () => set("words")(search.value.toLowerCase()) });
  refresh();
  return [el("h3", { id: "questions" }, "Questions and answers"),
    el("div", { class: "controls" },
      el("label", { class: "field grow" }, el("span", {}, "Search"), search),
      choice("Benchmark", [["*", "all"], ...benchmarks.map((name) => [name, name])], set("benchmark")),
      choice("Model", [["*", "all"], ...rows.map((row) => [row.label, row.label])], set("label")),
      choice("Answer", [["*", "right and wrong"], ["true", "right"], ["false", "wrong"]], set("right"))),
    pages, list];
}
