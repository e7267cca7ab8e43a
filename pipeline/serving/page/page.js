// Sends the prompt to /v1/completions and shows the answer with its calls while it is written.
"use strict";

const element = (id) => document.getElementById(id);
const [form, prompt, k, maxTokens, token] = ["form", "prompt", "k", "max-tokens", "token"].map(element);
const [answer, error, state, tools] = ["answer", "error", "state", "tools"].map(element);
let running = null; // the AbortController of the request

function span(name, text) {
  const node = document.createElement("span");
  node.className = name;
  node.textContent = text;
  return node;
}

function headers() {
  const sent = { "Content-Type": "application/json" };
  return token.value ? { ...sent, Authorization: `Bearer ${token.value}` } : sent;
}

async function failure(response) {
  if (response.status === 401) {
    element("token-field").hidden = false;
    token.focus();
  }
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `the server answered with status ${response.status}`);
}

async function showModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await failure(response);
  const [model] = (await response.json()).data;
  element("model").textContent = model.id;
  if (!k.value) k.value = model.toolformer.k;
  tools.replaceChildren(tools.querySelector("legend"));
  for (const name of model.toolformer.tools) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", checked: true, value: name });
    label.append(box, name);
    tools.append(label);
  }
  tools.hidden = !model.toolformer.tools.length;
}

function request() {
  const off = [...tools.querySelectorAll("input:not(:checked)")].map((box) => box.value);
  const body = { prompt: prompt.value, stream: true, tools_off: off };
  if (k.value) body.k = Number(k.value);
  if (maxTokens.value) body.max_tokens = Number(maxTokens.value);
  return body;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection was lost before the end of the answer");
    const blocks = (pending + value).split("\n\n");
    pending = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function inputOf(call) {
  const values = JSON.parse(call.function.arguments ?? "{}");
  const names = Object.keys(values);
  return names.length === 1 && names[0] === "input" ? values.input : names.length ? JSON.stringify(values) : "";
}

function callNode(call) {
  const node = span("call", `[${call.function.name}(${inputOf(call)}) → `);
  node.append(span("result", call.result ?? "…"), "]");
  return node;
}

function show(asked, text, calls) {
  const nodes = [span("prompt", asked.replace(/ +$/, ""))];
  const pending = [...calls.values()].filter((call) => !call.reason);
  let from = 0;
  for (const call of pending) {
    const at = call.position ?? text.length;
    nodes.push(text.slice(from, at), " ", callNode(call));
    from = at;
  }
  answer.replaceChildren(...nodes, text.slice(from));
  const failed = [...calls.values()].filter((call) => call.reason);
  element("failed-section").hidden = !failed.length;
  element("failed").replaceChildren(...failed.map((call) => {
    const item = document.createElement("li");
    const written = document.createElement("code");
    written.textContent = call.written;
    item.append(written, " ", span("reason", call.reason));
    return item;
  }));
}

async function send() {
  stop();
  const controller = (running = new AbortController());
  const asked = prompt.value;
  const calls = new Map();
  let text = "";
  error.textContent = "";
  show(asked, text, calls);
  setBusy(true, "writing …");
  try {
    const response = await fetch("v1/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request()), signal: controller.signal,
    });
    if (!response.ok) throw await failure(response);
    let finish = null;
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      for (const choice of chunk.choices) {
        text += choice.text;
        for (const call of choice.toolformer.calls) calls.set(call.id, call);
        finish = choice.finish_reason ?? finish;
      }
      show(asked, text, calls);
    }
    if (running === controller) setBusy(false, finish === "length" ? "done: the length limit was reached" : "done");
  } catch (problem) {
    if (running !== controller) return;
    const stopped = problem.name === "AbortError";
    const unreachable = problem instanceof TypeError; // what fetch and its stream throw
    error.textContent = stopped ? "" : unreachable ? "no connection to the server; is it still running?" : problem.message;
    setBusy(false, stopped ? "stopped" : "");
  }
}

function stop() {
  running?.abort();
}

function setBusy(busy, text) {
  answer.setAttribute("aria-busy", String(busy));
  element("stop").disabled = !busy;
  state.textContent = text;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
const connect = () => showModel().then(() => (error.textContent = ""))
  .catch((problem) => (error.textContent = problem.message));
token.addEventListener("change", connect);
connect();
