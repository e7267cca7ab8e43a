"use strict";
// What merge keeps at any threshold: the twin of pipeline/method/merging.py on the columns of `ScoredCalls`.

const COLUMNS = {
  text: Uint32Array, tool: Uint8Array, position: Uint32Array, gain: Float64Array,
  order: Uint32Array, p_api: Float32Array, is_bound: Uint8Array,
};

/** The columns as typed arrays, with the calls of one (tool, text) and of one (text, position) numbered. */
function readColumns(calls) {
  const columns = { ...calls };
  for (const [name, Kind] of Object.entries(COLUMNS)) {
    const bytes = Uint8Array.from(atob(calls[name]), (character) => character.charCodeAt(0));
    columns[name] = new Kind(bytes.buffer);
  }
  const places = new Map();
  columns.place = new Uint32Array(calls.number);
  let orders = 0;
  for (let i = 0; i < calls.number; i++) {
    const key = columns.text[i] * 2 ** 21 + columns.position[i]; // both fit: exact below 2 ** 53
    if (!places.has(key)) places.set(key, places.size);
    columns.place[i] = places.get(key);
    orders = Math.max(orders, columns.order[i] + 1);
  }
  columns.places = places.size;
  columns.orders = orders;
  // The tool of each order: an order stands for one tool and text.
  columns.toolOfOrder = new Uint8Array(orders);
  for (let i = 0; i < calls.number; i++) columns.toolOfOrder[columns.order[i]] = columns.tool[i];
  return columns;
}

/**
 * The counts at `tauF`, a threshold for each number of a tool. By tool: `calls` kept, `candidates` (texts with
 * a kept call), and of C*, after the cap and the choice by position, `examples` (texts) and `inserted` (calls).
 * In a sample of the texts the cap is the sample's share of it.
 */
function countKept(columns, tauF) {
  const { number, tool, gain, order, place, text } = columns;
  const tools = Array.from(tauF, () => ({ calls: 0, candidates: 0, examples: 0, inserted: 0 }));
  const hasKept = new Uint8Array(columns.orders);
  for (let i = 0; i < number; i++) {
    if (gain[i] >= tauF[tool[i]]) {
      tools[tool[i]].calls += 1;
      hasKept[order[i]] = 1;
    }
  }
  // Orders are ranks: the first texts of a tool are those that the cap admits.
  const cap = columns.sampled < 1 ? Math.round(columns.max_examples * columns.sampled) : columns.max_examples;
  for (let rank = 0; rank < columns.orders; rank++) {
    if (!hasKept[rank]) continue;
    const counts = tools[columns.toolOfOrder[rank]];
    counts.candidates += 1;
    if (counts.candidates > cap) hasKept[rank] = 0;
  }
  const preferred = new Uint32Array(columns.places).fill(0xffffffff);
  const inCorpus = (i) => gain[i] >= tauF[tool[i]] && hasKept[order[i]] === 1;
  if (columns.one_call_per_position) {
    for (let i = 0; i < number; i++) {
      if (inCorpus(i) && order[i] < preferred[place[i]]) preferred[place[i]] = order[i];
    }
  }
  const texts = new Uint8Array(columns.texts ? maximum(text) + 1 : 0);
  const examples = new Uint8Array(columns.orders);
  const total = { texts: 0, inserted: 0 };
  for (let i = 0; i < number; i++) {
    if (!inCorpus(i)) continue;
    if (columns.one_call_per_position && preferred[place[i]] !== order[i]) continue;
    tools[tool[i]].inserted += 1;
    total.inserted += 1;
    if (!examples[order[i]]) tools[tool[i]].examples += 1;
    examples[order[i]] = 1;
    if (!texts[text[i]]) total.texts += 1;
    texts[text[i]] = 1;
  }
  return { tools, total };
}

const maximum = (values) => values.reduce((highest, value) => Math.max(highest, value), 0);

/** The thresholds of the page, by the tools' numbers. Sections listen and follow them. */
const thresholds = {
  values: [],
  lowest: [],
  listeners: [],
  start(lowest) {
    this.lowest = [...lowest];
    this.values = [...lowest];
  },
  set(number, value) {
    this.setAll(this.values.map((old, place) => (place === number ? value : old)));
  },
  setAll(values) {
    this.values = values.map((value, place) =>
      Number.isFinite(value) ? Math.max(this.lowest[place], value) : this.values[place]);
    for (const listener of this.listeners) listener();
  },
  follow(listener) {
    this.listeners.push(listener);
    listener();
  },
};

/** A word of a command as a shell reads it. */
const quoted = (word) => (/^[\w./:@%+=-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** The command that keeps what the page counts. */
function mergeCommand(annotation, values) {
  const { folder, tools, calls } = annotation;
  const output = `${folder.replace(/\/+$/, "").replace(/[^/]*$/, "")}augmented-chosen`;
  const tauF = tools.map((tool, number) => `${quoted(tool.tool)} ${values[number]}`).join(" ");
  return `python -m pipeline merge --annotations ${quoted(folder)} --output ${quoted(output)} --tau-f ${tauF}`
    + ` --max-examples ${calls.max_examples}`
    + ` --${calls.one_call_per_position ? "" : "no-"}one-call-per-position`
    + (calls.seed === "0" ? "" : ` --seed=${calls.seed}`);
}
