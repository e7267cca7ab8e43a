"use strict";
// Elements, formats and tables. Data enters the page as text nodes only: texts of a corpus are hostile.

/** An element. Attributes are set as such, `on…` are listeners, null and false are left out. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const MISSING = "–";

const whole = (number) => (number === null || number === undefined ? MISSING : WHOLE.format(number));
const decimal = (number, digits = 2) =>
  number === null || number === undefined ? MISSING : number.toFixed(digits).replace("-", "−");
const signed = (number, digits = 2) => (number > 0 ? "+" : "") + decimal(number, digits);
const count = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;

function percent(share) {
  if (share === null || !Number.isFinite(share)) return MISSING;
  const value = 100 * share;
  return `${value === 0 || value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : value.toPrecision(1)} %`;
}

function probability(p) {
  return p >= 0.001 ? p.toFixed(3) : p === 0 ? "0" : p.toExponential(1).replace("e-", "e−");
}

/** A number with a prefix of SI: 3.2 T. */
function scaled(number, unit = "") {
  if (number === null || number === undefined) return MISSING;
  const prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
  let place = 0;
  while (Math.abs(number) >= 999.5 && place < prefixes.length - 1) {
    number /= 1000;
    place += 1;
  }
  const digits = place === 0 && Number.isInteger(number) ? 0 : Math.abs(number) >= 99.5 ? 0 : Math.abs(number) >= 9.95 ? 1 : 2;
  return `${number.toFixed(digits)} ${prefixes[place]}${unit}`.trim();
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return MISSING;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

/** A date for people, in UTC; the text itself if it is none. */
function moment(iso) {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? iso : `${date.toISOString().slice(0, 16).replace("T", " ")} UTC`;
}

/** A section of the page; empty ones are left out by the caller. */
function section(id, title, lead, ...content) {
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title`, tabindex: "-1" }, title),
    lead ? el("p", { class: "lead" }, lead) : null,
    ...content);
}

const NOTES_SHOWN = 5;
const details = (summary, ...content) => el("details", {}, el("summary", {}, summary), ...content);

function facts(entries, title = "Settings") {
  if (!entries.length) return null;
  const lines = entries.flatMap(({ name, value }) => [el("dt", {}, name), el("dd", {}, value)]);
  return details(title, el("dl", { class: "facts" }, lines));
}

/** Sentences in a list; many of them are folded. */
function notes(sentences, kind = "note") {
  if (!sentences.length) return null;
  const list = el("ul", { class: `notes ${kind}` }, sentences.map((sentence) => el("li", {}, sentence)));
  return sentences.length > NOTES_SHOWN ? details(`${sentences.length} remarks`, list) : list;
}

/**
 * A table that scrolls in itself. Columns: {title, numeric, value (of a row, to sort by), cell (of a row: text,
 * element or list)}. Headers sort where a column has a `value`. Its `show` replaces the rows.
 */
function table(label, columns, rows, { sortedBy = null, descending = true } = {}) {
  const body = el("tbody");
  const sort = { column: sortedBy, descending };
  const heads = columns.map((column, place) => {
    const name = column.value
      ? el("button", { type: "button", class: "sort", onclick: () => sortBy(place) }, column.title)
      : column.title;
    return el("th", { scope: "col", class: column.numeric ? "number" : null, title: column.hint }, name);
  });
  const element = el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, heads)), body));
  function sortBy(place) {
    sort.descending = sort.column === place ? !sort.descending : Boolean(columns[place].numeric);
    sort.column = place;
    fill();
  }
  function fill() {
    const shown = [...rows];
    if (sort.column !== null) {
      const value = columns[sort.column].value;
      const sign = sort.descending ? -1 : 1;
      shown.sort((a, b) => sign * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
    }
    heads.forEach((head, place) => {
      if (!columns[place].value) return;
      const direction = sort.descending ? "descending" : "ascending";
      head.setAttribute("aria-sort", place === sort.column ? direction : "none");
    });
    body.replaceChildren(...shown.map((row) => el("tr", {}, columns.map((column, place) =>
      el(place === 0 ? "th" : "td", { scope: place === 0 ? "row" : null, class: column.numeric ? "number" : null },
        column.cell(row))))));
  }
  element.show = (others) => {
    rows = others;
    fill();
  };
  fill();
  return element;
}

/** A bar of a share between 0 and 1, with a mark at another share if there is one. */
function bar(share, colour = null, mark = null) {
  const filled = el("span", { class: "filled" });
  filled.style.width = `${100 * Math.max(0, Math.min(1, share || 0))}%`;
  if (colour) filled.style.background = colour;
  const element = el("span", { class: "bar", "aria-hidden": "true" }, filled);
  if (mark !== null) {
    const line = el("span", { class: "mark" });
    line.style.left = `${100 * Math.max(0, Math.min(1, mark))}%`;
    element.append(line);
  }
  return element;
}

/** A labelled choice: options are [value, text]. */
function choice(label, options, onchange) {
  const select = el("select", { onchange: () => onchange(select.value) },
    options.map(([value, text]) => el("option", { value }, text)));
  return el("label", { class: "field" }, el("span", {}, label), select);
}

/** Buttons to walk through pages of a list; `show` draws page number `page`, counted from 0. */
function pager(size, show) {
  let page = 0;
  let number = 0;
  const position = el("span", { class: "soft", role: "status" });
  const back = el("button", { type: "button", onclick: () => turn(page - 1) }, "Previous");
  const forth = el("button", { type: "button", onclick: () => turn(page + 1) }, "Next");
  const element = el("div", { class: "pager" }, back, position, forth);
  function turn(to) {
    page = Math.max(0, Math.min(to, Math.ceil(number / size) - 1));
    const end = Math.min(number, (page + 1) * size);
    position.textContent = number ? `${whole(page * size + 1)}–${whole(end)} of ${whole(number)}` : "none";
    back.disabled = page === 0;
    forth.disabled = end >= number;
    show(page * size, end);
  }
  element.turn = (change) => {
    const moves = page + change >= 0 && (page + change) * size < number;
    if (moves) turn(page + change);
    return moves;
  };
  element.reset = (total) => {
    number = total;
    turn(0);
  };
  return element;
}

/** Calls in a text as marked spans. `tools` are the names that may open one; none: any name. */
function withCalls(text, tools) {
  const names = tools.length ? tools.map((tool) => tool.replace(/[^\w]/g, "\\$&")).join("|") : "[A-Za-z_]\\w*";
  const parts = text.split(new RegExp(`(\\[(?:${names})\\([^\\[\\]\\r\\n]*?\\)(?: (?:->|→) [^\\[\\]\\r\\n]*)?\\])`));
  return parts.map((part, place) => (place % 2 ? el("mark", { class: "call" }, part) : part));
}
