import { bytes, el, fill, joined, number, rows, since } from "./dom.js";
import { post, Problem, rights, showState, stream } from "./live.js";

const nodes = document.getElementById("nodes");
const dialog = document.getElementById("ask");
const cpu = new Map(); // by worker: the last CPU time, and when
let asked = null;

const TEXTS = {
  drain: "It takes no new clients, and closes the connected ones one after the other with 4200, so that they connect to other workers at once. It serves HTTP on, until you resume or restart it.",
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

function table(node, workers, at) {
  const body = el("tbody");
  const head = HEAD.map(([text, name]) => el(text ? "th" : "td", text ? { scope: "col", class: name } : {}, text));
  const whole = el("table", {}, el("caption", {}, `${node}: ${workers.length} ${workers.length === 1 ? "worker" : "workers"}`), el("thead", {}, el("tr", {}, head)), body);
  rows(
    body,
    workers.map((worker) => [
      String(worker.pid),
      stateOf(worker),
      worker.version,
      { text: joined((worker.state?.jobs ?? []).filter((job) => job.state === "running")).map((job) => job.name).join("; ") || "–", class: "console-leases" },
      { text: number(worker.gauges["connections.now"] ?? 0), class: "num" },
      { text: number(worker.gauges["engine.behind"] ?? 0), class: "num" },
      { text: load(worker, at), class: "num" },
      { text: bytes(worker.gauges["memory.bytes"] ?? 0), class: "num" },
      { text: since(worker.started), class: "num" },
      el("div", { class: "console-actions" }, buttons(worker)),
    ]),
  );
  return el("div", { class: "console-scroll", tabindex: 0, role: "region", "aria-label": `Workers of ${node}` }, whole);
}

for await (const report of stream("overview")) {
  if (nodes.contains(document.activeElement)) continue; // not away under the user's hands
  const names = [...new Set(report.workers.map((worker) => worker.node))];
  const missing = report.expected - report.workers.length;
  fill(
    nodes,
    missing > 0 ? el("p", { class: "console-problem" }, `${number(missing)} of ${number(report.expected)} workers do not answer. A worker that was killed is removed from this count after some seconds.`) : null,
    names.map((node) => table(node, report.workers.filter((worker) => worker.node === node), report.at)),
  );
}
