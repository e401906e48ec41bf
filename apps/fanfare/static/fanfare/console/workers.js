import { bytes, counted, el, joined, number, rows, since } from "./dom.js";
import { post, Problem, rights, showState, stream } from "./live.js";

const nodes = document.getElementById("nodes");
const silent = document.getElementById("silent");
const dialog = document.getElementById("ask");
const cpu = new Map(); // by worker: the last CPU time, and when
let asked = null;

const TEXTS = {
  drain: "It takes no new clients, and closes the connected ones one after the other with 4200, so that they connect to other workers at once. It continues to serve HTTP until you resume or restart it.",
  resume: "It takes clients again.",
  restart: "It closes its clients and ends. The process manager starts another worker in its place; a worker without a process manager must be started by hand.",
};

function ask(worker, action) {
  asked = { worker: worker.worker, action };
  document.getElementById("ask-title").textContent = `${action[0].toUpperCase()}${action.slice(1)} ${worker.node} ${worker.pid}?`;
  document.getElementById("ask-text").textContent = TEXTS[action];
  document.getElementById("ask-yes").textContent = `${action[0].toUpperCase()}${action.slice(1)}`;
  dialog.showModal();
}

dialog.addEventListener("close", async () => {
  if (dialog.returnValue !== "yes") return;
  try {
    await post("worker", asked);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showState("problem", error.message);
  }
});

function load(worker, at) {
  const before = cpu.get(worker.worker);
  const now = worker.state?.cpu_s;
  if (now === undefined) return "–";
  cpu.set(worker.worker, { at, cpu_s: now });
  return before && at > before.at ? `${number((100 * (now - before.cpu_s)) / (at - before.at))} %` : "…";
}

function stateOf({ state }) {
  if (!state) return el("span", { class: "console-bad" }, "does not answer");
  if (!state.engine.ok) return el("span", { class: "console-bad" }, state.engine.reason);
  if (state.database) return el("span", { class: "console-bad" }, state.database);
  if (state.draining) return el("span", { class: "console-warn" }, "draining");
  return el("span", { class: "console-good" }, "well");
}

function buttons(worker) {
  if (!rights.has("drain_worker")) return "";
  const actions = [worker.state?.draining ? "resume" : "drain", "restart"];
  return actions.map((action) =>
    el("button", { type: "button", class: "button", "aria-label": `${action} ${worker.node} ${worker.pid}`, onclick: () => ask(worker, action) }, `${action[0].toUpperCase()}${action.slice(1)}…`),
  );
}

const HEAD = [["Worker"], ["State"], ["Version"], ["Leases"], ["Connections", "num"], ["Lag", "num"], ["CPU", "num"], ["Memory", "num"], ["Age", "num"], [""]];

const shown = new Map(); // by server: its table

function section(key) {
  const head = HEAD.map(([text, name]) => el(text ? "th" : "td", text ? { scope: "col", class: name } : {}, text));
  const table = el("table", {}, el("caption"), el("thead", {}, el("tr", {}, head)), el("tbody"));
  nodes.append(el("div", { class: "console-scroll", tabindex: 0, role: "region" }, table));
  shown.set(key, table);
  return table;
}

function showServer(key, name, workers, at) {
  const table = shown.get(key) ?? section(key);
  table.parentElement.ariaLabel = `Workers of ${name}`;
  table.caption.textContent = `${name}: ${counted(workers.length, "worker")}`;
  rows(
    table.tBodies[0],
    workers.map((worker) => [
      String(worker.pid),
      stateOf(worker),
      worker.version,
      { text: joined((worker.state?.jobs ?? []).filter((job) => job.state === "running")).map((job) => job.name).join("; ") || "–", class: "console-wide" },
      { text: number(worker.gauges["connections.now"] ?? 0), class: "num" },
      { text: number(worker.gauges["engine.behind"] ?? 0), class: "num" },
      { text: load(worker, at), class: "num" },
      { text: bytes(worker.gauges["memory.bytes"] ?? 0), class: "num" },
      { text: since(worker.started), class: "num" },
      el("div", { class: "console-actions" }, buttons(worker)),
    ]),
    null,
    workers.map((worker) => worker.worker),
  );
}

function showSilent({ expected, faults, workers }) {
  const missing = expected - workers.length;
  const texts = faults.map(({ name, reason }) => `Worker ${name} reads no events: ${reason}`);
  if (missing > 0) texts.unshift(`${number(missing)} of ${counted(expected, "worker")} ${missing === 1 ? "does" : "do"} not answer. A worker that was killed is removed from this count after some seconds.`);
  silent.hidden = !texts.length;
  if (silent.textContent !== texts.join(" ")) silent.textContent = texts.join(" "); // a screen reader reads a change
}

for await (const report of stream("overview")) {
  showSilent(report);
  const byServer = Map.groupBy(report.workers, ({ node, server }) => `${node} ${server}`);
  for (const [key, table] of shown) {
    if (byServer.has(key)) continue;
    table.parentElement.remove();
    shown.delete(key);
  }
  for (const [key, workers] of byServer) {
    const [{ node, server }] = workers;
    // A machine may have several servers: each is named by the id of its process, too.
    const isOnly = report.workers.every((one) => one.node !== node || one.server === server);
    showServer(key, isOnly ? node : `${node}, server ${server ?? "unknown"}`, workers, report.at);
  }
}
