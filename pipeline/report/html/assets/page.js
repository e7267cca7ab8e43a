"use strict";
// The page: its head, its contents, the theme, and paper.

const PAPER_WIDTH = 660; // pixels of a chart on paper
const report = JSON.parse(document.getElementById("data").textContent);

function headlineNumbers({ annotation, augmented, evaluation }) {
  const numbers = [];
  if (annotation) {
    const sum = (field) => annotation.tools.reduce((total, tool) => total + tool[field], 0);
    numbers.push(["texts", whole(annotation.texts_done)], ["scored calls", whole(sum("scored"))], ["kept calls", whole(sum("kept"))]);
  }
  if (augmented) numbers.push(["texts in C*", whole(augmented.texts)]);
  for (const [name, row] of evaluation ? extremes(evaluation) : []) numbers.push([name, `${decimal(meanScore(evaluation, row), 1)} %`]);
  return numbers;
}

const meanScore = ({ benchmarks }, row) => {
  const scores = benchmarks.map((name) => row.scores[name]).filter(Boolean);
  return scores.reduce((sum, score) => sum + score.value, 0) / scores.length;
};

/** The model with the most calls, and the one that it is compared with. */
function extremes(evaluation) {
  const rows = evaluation.rows.filter((row) => Object.keys(row.scores).length);
  const calls = (row) => Object.values(row.scores).reduce((sum, score) => sum + score.calls, 0);
  const most = rows.reduce((best, row) => (best === null || calls(row) > calls(best) ? row : best), null);
  const other = rows.find((row) => row.label === evaluation.compared_with && row !== most);
  return [most, other].filter(Boolean).map((row) => [`mean of ${count(evaluation.benchmarks.length, "benchmark")}, ${row.label}`, row]);
}

function showHead() {
  const { annotation, augmented, trainings, evaluation, problems } = report;
  const states = [annotation, ...trainings].filter(Boolean).map((part) => part.state);
  const state = states.includes("unfinished") ? "unfinished" : states.length ? "finished" : null;
  const lost = annotation ? [...annotation.warnings, ...annotation.losses] : [];
  document.title = `${report.title} – Toolformer report`;
  document.getElementById("head").append(
    el("div", { class: "title" },
      el("p", { class: "soft kind" }, "Toolformer on Ray: report"),
      el("h1", {}, report.title),
      el("p", { class: "soft" }, el("code", {}, report.folder),
        state ? el("span", { class: `state ${state}` }, state) : null, ` ${moment(report.created)}, version ${report.version}`)),
    el("ul", { class: "numbers" }, headlineNumbers(report).map(([name, value]) =>
      el("li", {}, el("strong", {}, value), el("span", { class: "soft" }, name)))),
    ...[notes(problems, "problem"), notes(lost)].filter(Boolean));
}

function overview(annotation) {
  const entries = Object.entries(annotation.status).map(([name, value]) => ({ name: `texts: ${name.replaceAll("_", " ")}`, value: whole(value) }));
  return facts([...annotation.facts, ...entries], "Settings of the annotation");
}

function showSections() {
  const { annotation, augmented, trainings, evaluation } = report;
  const toolNames = [...new Set([
    ...(annotation ? annotation.tools.map((tool) => tool.tool) : []),
    ...(augmented ? augmented.tools.map((tool) => tool.tool) : []),
    ...(evaluation ? evaluation.rows.flatMap((row) => Object.values(row.calls_by_tool).flatMap(Object.keys)) : []),
  ])];
  const sections = [];
  if (annotation) {
    thresholds.start(annotation.tools.map((tool) => tool.tau_f));
    const columns = readColumns(annotation.calls);
    sections.push(funnelSection(annotation), gainSection(annotation, columns), scatterSection(annotation, columns),
      contextsSection(annotation), placementSection(annotation), droppedSection(annotation),
      columns.number ? valueSection(annotation, columns) : null, costSection(annotation));
    sections[0].append(...[overview(annotation)].filter(Boolean));
  }
  if (augmented) sections.push(augmentedSection(augmented, toolNames));
  if (trainings.length) sections.push(trainingSection(trainings));
  if (evaluation) sections.push(evaluationSection(evaluation, toolNames));
  const shown = sections.filter(Boolean);
  document.getElementById("main").append(...(shown.length ? shown : [el("p", {}, "There is nothing to show yet.")]));
  return shown;
}

function showContents(sections) {
  const links = new Map(sections.map((part) => [part.id, el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)]));
  const contents = document.getElementById("contents");
  contents.append(
    el("ul", {}, [...links.values()].map((link) => el("li", {}, link))), themeSwitch());
  const visible = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) visible[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    const current = sections.find((part) => visible.has(part.id));
    links.forEach((link, id) => (current && id === current.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    if (current) contents.scrollTo({ left: links.get(current.id).offsetLeft - 16 }); // a row on narrow screens
  }, { rootMargin: "-10% 0px -60% 0px" });
  sections.forEach((part) => observer.observe(part));
}

/** Follows the system until the reader chooses. */
function themeSwitch() {
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const button = el("button", { type: "button", class: "theme", onclick: () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    name();
  } });
  const name = () => {
    button.textContent = dark() ? "Light theme" : "Dark theme";
    redrawCharts();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();
  return button;
}

/** On paper: light, everything open, charts as wide as the paper. */
function followPrinting() {
  let before = null;
  addEventListener("beforeprint", () => {
    const closed = [...document.querySelectorAll("details:not([open])")];
    before = { theme: document.documentElement.dataset.theme, closed };
    closed.forEach((element) => { element.open = true; });
    document.documentElement.dataset.theme = "light";
    redrawCharts();
    fitCharts(PAPER_WIDTH);
  });
  addEventListener("afterprint", () => {
    before.closed.forEach((element) => { element.open = false; });
    if (before.theme) document.documentElement.dataset.theme = before.theme;
    else delete document.documentElement.dataset.theme;
    redrawCharts();
    fitCharts(null);
  });
}

showHead();
showContents(showSections());
followPrinting();
document.documentElement.dataset.ready = String(Math.round(performance.now()));
