"use strict";
// Calls in their texts: a list to search, filter, sort and walk through with the keyboard.

const CALLS_A_PAGE = 10;
const AROUND = 160; // characters on either side of a call while it is closed
const CHOSEN = { best: "largest gains", worst: "smallest gains", near: "near the threshold", random: "random sample" };

/** One call with its numbers; opened, with its whole text. */
function callCard(annotation, call, { open = false } = {}) {
  const number = annotation.tools.findIndex((tool) => tool.tool === call.tool);
  const { text, text_id: id, source, url, left_out_before: cutBefore, left_out_after: cutAfter } = annotation.texts[call.text];
  const excerpt = el("p", { class: "text", dir: "auto" });
  const whether = el("span", { class: "whether" });
  const body = el("div", { class: "body" });
  const toggle = el("button", { type: "button", class: "open", "aria-expanded": "false", onclick: () => show(!opened) });
  const card = el("article", { class: "call-card" },
    el("div", { class: "top" }, el("span", { class: "tool" }, swatch(number), call.tool),
      el("span", { class: "gain-value" }, signed(call.gain), call.l_call === null ? " at most" : ""),
      el("span", { class: "soft" }, `p(<API>) ${probability(call.p_api)}`), whether, toggle),
    excerpt, body);
  let opened = false;
  let plain = false;
  function show(now) {
    opened = now;
    toggle.setAttribute("aria-expanded", String(opened));
    toggle.setAttribute("aria-label", `${opened ? "Close" : "Open"} ${call.call.trim()}`);
    toggle.textContent = opened ? "Close" : "Open";
    card.classList.toggle("opened", opened);
    write();
    body.replaceChildren(...(opened ? numbers() : []));
  }
  function write() {
    const from = opened ? 0 : wordBefore(text, call.position - AROUND);
    const to = opened ? text.length : call.position + AROUND;
    const before = (from || cutBefore ? "…" : "") + text.slice(from, call.position).toWellFormed();
    const after = text.slice(call.position, to).toWellFormed() + (to < text.length || cutAfter ? "…" : "");
    const written = el("mark", { class: "call" }, call.call.trim());
    const marked = call.position || cutBefore ? [" ", written] : [written, " "];
    excerpt.replaceChildren(el("bdi", {}, before), ...(plain && opened ? [] : marked), el("bdi", {}, after));
  }
  function numbers() {
    const without = el("button", { type: "button", "aria-pressed": String(plain), onclick: () => {
      plain = !plain;
      without.setAttribute("aria-pressed", String(plain));
      write();
    } }, "Without the call");
    const link = /^https?:\/\//.test(url || "") ? el("a", { href: url, rel: "noreferrer noopener" }, url) : url;
    const entries = [
      ["gain = min(L⁻(∅), L⁻(call)) − L⁺", `${signed(call.gain, 4)} nats${call.l_call === null ? ", an upper bound" : ""}`],
      ["L⁺, with the call and its result", decimal(call.l_plus, 4)],
      ["L⁻(∅), without a call (L_empty)", decimal(call.l_empty, 4)],
      ["L⁻(call), without the result (L_call)", call.l_call === null ? "not computed: it could only lower the gain" : decimal(call.l_call, 4)],
      ["p(<API>)", probability(call.p_api)], ["input", call.input], ["result", call.result],
      ["chosen as", call.chosen.map((reason) => CHOSEN[reason] || reason).join(", ")],
      ["text", `${id}, ${source}`],
      ...(cutBefore || cutAfter ? [["left out", `${whole(cutBefore)} characters before, ${whole(cutAfter)} after`]] : []),
    ];
    return [without, el("dl", { class: "facts" }, entries.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, el("bdi", {}, value))]),
      link ? [el("dt", {}, "URL"), el("dd", {}, link)] : null)];
  }
  card.follow = () => {
    const kept = call.gain >= thresholds.values[number];
    whether.textContent = kept ? "✓ kept" : "✗ below the threshold";
    whether.classList.toggle("yes", kept);
  };
  card.toggle = () => show(!opened);
  card.follow();
  show(open);
  return card;
}

/** The start of the first word after `from`, unless that is far away. */
function wordBefore(text, from) {
  if (from <= 0) return 0;
  const space = text.indexOf(" ", from);
  return space >= 0 && space < from + AROUND / 4 ? space + 1 : from;
}

function contextsSection(annotation) {
  const { contexts, texts, tools } = annotation;
  if (!contexts.length) return null;
  const searchable = contexts.map((call) => `${texts[call.text].text}\n${call.call}`.toLowerCase());
  const filter = { words: "", tool: "*", chosen: "*", low: -Infinity, high: Infinity, kept: "*", order: "best" };
  const orders = {
    best: (a, b) => contexts[b].gain - contexts[a].gain,
    worst: (a, b) => contexts[a].gain - contexts[b].gain,
    near: (a, b) => distance(contexts[a]) - distance(contexts[b]),
    probable: (a, b) => contexts[b].p_api - contexts[a].p_api,
  };
  const number = new Map(tools.map((tool, place) => [tool.tool, place]));
  const threshold = (call) => thresholds.values[number.get(call.tool)];
  const distance = (call) => Math.abs(call.gain - threshold(call));
  const list = el("ol", { class: "calls", "aria-label": "Calls" });
  let found = [];
  let cards = [];
  let current = -1;
  const pages = pager(CALLS_A_PAGE, (from, to) => {
    cards = found.slice(from, to).map((index) => callCard(annotation, contexts[index]));
    list.replaceChildren(...cards.map((card) => el("li", { tabindex: "-1" }, card)));
    current = -1;
  });
  function refresh() {
    const words = filter.words.toLowerCase();
    found = contexts.map((_, index) => index).filter((index) => {
      const call = contexts[index];
      return (filter.tool === "*" || call.tool === filter.tool)
        && (filter.chosen === "*" || call.chosen.includes(filter.chosen))
        && (filter.kept === "*" || (call.gain >= threshold(call)) === (filter.kept === "yes"))
        && call.gain >= filter.low && call.gain <= filter.high
        && searchable[index].includes(words);
    }).sort(orders[filter.order]);
    pages.reset(found.length);
  }
  const set = (name) => (value) => {
    filter[name] = value;
    refresh();
  };
  const limit = (label, name, none) => el("label", { class: "field" }, el("span", {}, label),
    el("input", { type: "number", step: "0.1", oninput: (event) => set(name)(event.target.value === "" ? none : Number(event.target.value)) }));
  const search = el("input", { type: "search", id: "search", placeholder: "text or call", oninput: () => set("words")(search.value) });
  const move = (change) => {
    if (!cards.length) return;
    if (current + change >= cards.length || current + change < 0) {
      if (!pages.turn(change)) return;
      current = change > 0 ? 0 : cards.length - 1;
    } else {
      current += change;
    }
    const item = cards[current].parentElement;
    item.focus({ preventScroll: true });
    item.scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") search.focus();
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "Enter" && event.target.parentElement === list) cards[current]?.toggle();
    else return;
    event.preventDefault();
  });
  thresholds.follow(() => (filter.kept === "*" && filter.order !== "near" ? cards.forEach((card) => card.follow()) : refresh()));
  refresh();
  const reasons = Object.keys(CHOSEN).filter((reason) => contexts.some((call) => call.chosen.includes(reason)));
  return section("calls", "Calls in their texts",
    `${whole(contexts.length)} of ${whole(columnsTotal(annotation))} scored calls: the best, the worst, those near the threshold, and a random sample of each tool.`,
    el("div", { class: "controls" },
      el("label", { class: "field grow" }, el("span", {}, "Search ", el("kbd", {}, "/")), search),
      choice("Tool", [["*", "all"], ...tools.map((tool) => [tool.tool, tool.tool])], set("tool")),
      choice("Chosen as", [["*", "all"], ...reasons.map((reason) => [reason, CHOSEN[reason]])], set("chosen")),
      choice("At the thresholds", [["*", "all"], ["yes", "kept"], ["no", "not kept"]], set("kept")),
      limit("Gain from", "low", -Infinity), limit("to", "high", Infinity),
      choice("Order", [["best", "largest gain first"], ["worst", "smallest gain first"], ["near", "nearest to the threshold"], ["probable", "likeliest first"]], set("order"))),
    el("p", { class: "soft keys-help" }, el("kbd", {}, "/"), " search, ", el("kbd", {}, "j"), " next, ", el("kbd", {}, "k"), " previous, ", el("kbd", {}, "Enter"), " open"),
    pages, list);
}

const columnsTotal = (annotation) => annotation.tools.reduce((sum, tool) => sum + tool.scored, 0);
