import { el, fill, number } from "./dom.js";
import { applications, clock, copy, pretty, values } from "./events.js";
import { Problem, showState, stream } from "./live.js";

const MOST = 500; // rows of the page
const form = document.getElementById("filter");
const problem = document.getElementById("filter-problem");
const list = document.getElementById("items");
const empty = document.getElementById("empty");
const count = document.getElementById("count");
const pause = document.getElementById("pause");

let attempt = new AbortController();
let held = []; // the newest MOST items that came while the page is paused
let dropped = 0; // older ones of the same pause
let shown = 0;
let seen = 0;
let missed = 0;
let unexamined = 0;
let missing = 0; // workers that do not send their items
let lostMs = 0; // when the page lost its worker, or the worker lost the log; 0 while the tail is live

function subject(item) {
  if (item.data !== undefined) return [item.channel, item.event, item.data];
  if (item.type === "refusal") return [item.channel || item.what, item.reason, item.text];
  if (item.type === "webhook") return [item.url, item.code ?? "no answer", `${item.events} ${item.events === 1 ? "event" : "events"}: ${item.text}`];
  return [item.channel || item.socket, item.user ?? "", [item.text, item.client, item.address].filter(Boolean).join(" · ")];
}

function details(item) {
  const skipped = new Set(["type", "at", "data", "evidence"]);
  const pairs = Object.entries(item).filter(([name, value]) => !skipped.has(name) && value !== null && value !== "");
  const actions = el("div", { class: "tail-actions" });
  actions.append(el("button", { type: "button", class: "button", onclick: (event) => copy(event.target, JSON.stringify(item, null, 2)) }, "Copy"));
  if (item.entry) actions.append(el("a", { class: "button", href: `../trace/?${new URLSearchParams({ entry: item.entry, app: item.app, channel: item.channel })}` }, "Trace"));
  if (item.evidence?.auth) {
    actions.append(el("a", { class: "button", href: `../doctor/?at=${item.at}` }, "Examine the signature"));
  }
  return el(
    "div", { class: "tail-body" },
    item.data !== undefined && el("pre", {}, pretty(item.data)),
    el("dl", {}, pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])),
    actions,
  );
}

function row(item) {
  if (item.type === "gap") return el("li", { "data-type": "gap" }, item.text);
  const [where, what, rest] = subject(item);
  const summary = el(
    "summary", {},
    el("time", { datetime: new Date(item.at * 1000).toISOString() }, clock(item.at)),
    el("span", { class: "tail-type" }, item.type),
    el("span", {}, String(where ?? "")),
    el("span", {}, String(what ?? "")),
    el("span", { class: "console-quiet" }, String(rest ?? "").slice(0, 300)),
  );
  const element = el("details", { ontoggle: () => element.childElementCount === 1 && element.append(details(item)) }, summary);
  return el("li", { "data-type": item.type }, element);
}

const isPaused = () => pause.getAttribute("aria-pressed") === "true";

function show(items) {
  if (!items.length) return;
  list.prepend(...items.map(row).reverse());
  while (list.childElementCount > MOST) list.lastElementChild.remove();
  empty.hidden = true;
}

function hold(items) {
  held.push(...items);
  dropped += held.splice(0, held.length - MOST).length;
}

function tell() {
  const parts = [`${number(shown)} shown`];
  if (missing) parts.push(`${number(missing)} ${missing === 1 ? "worker does" : "workers do"} not answer: only their events are shown`);
  if (seen > shown) parts.push(`a sample: ${number(seen)} happened (${number((100 * shown) / seen)} %)`);
  if (missed) parts.push(`${number(missed)} were lost because this page is slow`);
  if (unexamined) parts.push(`${number(unexamined)} events came too fast to be compared with the filter`);
  if (held.length) parts.push(`${number(held.length)} wait`);
  if (dropped) parts.push(`${number(dropped)} older ones of this pause were dropped`);
  count.textContent = parts.join(" · ");
}

/** Shows the state, and a row for the time in which the tail was not live. */
function onState(name, text) {
  showState(name, text);
  if (name !== "live") lostMs ||= Date.now();
  else if (lostMs) {
    const gap = { type: "gap", text: `What happened from ${clock(lostMs / 1000)} to ${clock(Date.now() / 1000)} is not shown in full: the tail was not live.` };
    lostMs = 0;
    if (isPaused()) hold([gap]);
    else show([gap]);
  }
}

async function follow(args, signal) {
  problem.hidden = true;
  lostMs = 0;
  try {
    for await (const batch of stream("tail", args, { signal, onState })) {
      if (batch.field) {
        problem.textContent = batch.problem;
        problem.hidden = false;
        return;
      }
      missing = batch.missing ?? missing;
      if (batch.reads_log === true) onState("live", "Live");
      else if (batch.problem || batch.reads_log === false) onState("lost", batch.problem ?? "The worker does not read the log yet. Events are missing until it does.");
      seen += batch.seen;
      shown += batch.items.length;
      missed += batch.missed ?? 0;
      unexamined += batch.unexamined ?? 0;
      if (isPaused()) hold(batch.items);
      else show(batch.items);
      tell();
    }
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    problem.textContent = error.message;
    problem.hidden = false;
  }
}

function start() {
  attempt.abort();
  attempt = new AbortController();
  const args = values(form);
  if (!args.types) {
    problem.textContent = "Choose at least one kind of items to show.";
    problem.hidden = false;
    return;
  }
  history.replaceState(null, "", `?${new URLSearchParams(args)}`);
  follow(args, attempt.signal);
}

pause.addEventListener("click", () => {
  const pauses = !isPaused();
  pause.setAttribute("aria-pressed", String(pauses));
  pause.textContent = pauses ? "Resume" : "Pause";
  if (pauses) dropped = 0;
  else {
    show(held);
    held = [];
  }
  tell();
});
document.getElementById("clear").addEventListener("click", () => {
  fill(list);
  held = [];
  shown = seen = missed = unexamined = dropped = 0;
  empty.hidden = false;
  tell();
});
form.addEventListener("submit", (event) => event.preventDefault());
let typing = 0;
form.addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(start, event.target.type === "checkbox" || event.target.tagName === "SELECT" ? 0 : 400);
});

const wanted = new URLSearchParams(location.search);
for (const [name, value] of wanted) {
  if (name === "types") for (const box of form.elements.types) box.checked = value.split(",").includes(box.value);
  else if (form.elements[name]?.tagName === "INPUT") form.elements[name].value = value;
}
await applications(form.elements.app);
start();
