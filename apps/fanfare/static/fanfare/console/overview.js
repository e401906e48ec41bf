import { Chart } from "./charts.js";
import { bytes, counted, duration, el, fill, joined, number, rows, short, since } from "./dom.js";
import { get, Problem, stream } from "./live.js";

const SAMPLE_S = 10;
const BOUNDS_S = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
const place = (id) => document.getElementById(id);
const links = Object.fromEntries(
  [...document.querySelectorAll(".console-nav a")].map((link) => [link.pathname.replace(/\/$/, "").split("/").pop(), link]),
);

// -- what is well, and what is not ------------------------------------------------------------------------------------

function showVerdict(report) {
  const isBad = report.findings.some((finding) => finding.level === "bad");
  const section = place("verdict");
  section.dataset.state = isBad ? "bad" : report.findings.length ? "warn" : "good";
  const nodes = new Set(report.workers.map((worker) => `${worker.node} ${worker.server}`)).size;
  const all = `${counted(report.workers.length, "worker")} on ${counted(nodes, "node")}`;
  const text = isBad ? "Something is wrong" : report.findings.length ? "Something needs attention" : "All is well";
  const items = report.findings.map((finding) => {
    const link = links[finding.page];
    return el("li", { class: `console-${finding.level}` }, finding.text, link ? " " : null, link ? el("a", { href: link.href }, `See ${link.textContent}`) : null);
  });
  const key = JSON.stringify([text, all, report.findings]);
  if (section.dataset.shown === key) return; // a screen reader reads the section again when it changes
  section.dataset.shown = key;
  fill(section, el("h2", {}, text), el("p", { class: "console-quiet" }, `${all}.`), items.length ? el("ul", {}, items) : null);
}

function showFigures({ gauges, rates }) {
  const rate = (name, format = short) => (rates[name] === undefined ? "…" : `${format(rates[name])}/s`);
  const [p50, p95, p99] = rates.delivery ?? [];
  const known = (value) => value !== null && value !== undefined;
  const values = [
    ["Connections", short(gauges["connections.now"] ?? 0), `${rate("connections")} new`],
    ["Subscriptions", short(gauges["subscriptions.now"] ?? 0), `${short(gauges["channels.now"] ?? 0)} ${gauges["channels.now"] === 1 ? "channel" : "channels"}, once per worker`],
    ["Events in", rate("published"), "to the workers"],
    ["Deliveries", rate("deliveries"), rate("delivered_bytes", bytes)],
    ["Refusals", rate("refused"), null],
    ["Commit to delivery (median)", known(p50) ? duration(p50) : "–", known(p99) ? `95 %: ${duration(p95)}, 99 %: ${duration(p99)}` : "no events now"],
    ["Engine lag", `${short(gauges["engine.behind"] ?? 0)}`, "entries not read yet"],
    ["Memory", bytes(gauges["memory.bytes"] ?? 0), "of all workers"],
  ];
  fill(place("figures"), values.map(([name, value, more]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, more ? el("small", {}, more) : null))));
}

// -- workers and jobs -------------------------------------------------------------------------------------------------

const cpu = new Map(); // by worker: the last CPU time, and when

function load(worker, at) {
  const before = cpu.get(worker.worker);
  const now = worker.state?.cpu_s;
  if (now === undefined) return "–";
  cpu.set(worker.worker, { at, cpu_s: now });
  return before && at > before.at ? `${number((100 * (now - before.cpu_s)) / (at - before.at))} %` : "…";
}

function stateOf(worker) {
  if (!worker.state) return el("span", { class: "console-bad" }, "does not answer");
  if (!worker.state.engine.ok) return el("span", { class: "console-bad" }, "engine fails");
  if (worker.state.applications) return el("span", { class: "console-bad" }, "no applications");
  if (worker.state.database) return el("span", { class: "console-bad" }, "no database");
  if (worker.state.draining) return el("span", { class: "console-warn" }, "draining");
  return el("span", { class: "console-good" }, "well");
}

function showWorkers(report) {
  rows(
    place("workers"),
    report.workers.map((worker) => [
      `${worker.node} ${worker.pid}`,
      stateOf(worker),
      { text: number(worker.gauges["connections.now"] ?? 0), class: "num" },
      { text: number(worker.gauges["channels.now"] ?? 0), class: "num" },
      { text: number(worker.gauges["engine.behind"] ?? 0), class: "num" },
      { text: load(worker, report.at), class: "num" },
      { text: bytes(worker.gauges["memory.bytes"] ?? 0), class: "num" },
      { text: since(worker.started), class: "num" },
    ]),
    "No worker answers.",
  );
  const jobs = report.workers.flatMap((worker) => (worker.state?.jobs ?? []).map((job) => ({ ...job, where: `${worker.node} ${worker.pid}` })));
  const busy = joined(jobs.filter((job) => job.state !== "waiting" || job.error));
  rows(
    place("jobs"),
    busy.map((job) => [
      job.name,
      job.where,
      job.error && job.state === "pausing" ? el("span", { class: "console-bad" }, "fails") : job.state,
      { text: number(job.runs), class: "num" },
      { text: number(job.failures), class: "num" },
      job.error,
    ]),
    "No job runs. Jobs of the deployment run in one worker, which holds their lease.",
  );
}

// -- the hour ---------------------------------------------------------------------------------------------------------

const charts = {
  connections: new Chart(place("charts"), "Connections", ["connections"], short),
  events: new Chart(place("charts"), "Events and deliveries per second", ["events in", "deliveries"], short),
  delivery: new Chart(place("charts"), "From commit to delivery", ["median", "95 %", "99 %"], duration),
  refused: new Chart(place("charts"), "Refusals per second", ["refusals"], short),
  bytes: new Chart(place("charts"), "Delivered bytes per second", ["bytes"], bytes),
  memory: new Chart(place("charts"), "Memory of all workers", ["memory"], bytes),
};

function quantile(counts, fraction) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return null;
  let rest = fraction * total;
  for (const [index, count] of counts.entries()) {
    if (count && rest <= count) {
      const lower = index ? BOUNDS_S[index - 1] : 0;
      return lower + ((BOUNDS_S[index] ?? lower) - lower) * (rest / count);
    }
    rest -= count;
  }
  return BOUNDS_S.at(-1);
}

const FIGURES = ["connections", "published", "deliveries", "delivered_bytes", "refused", "memory"];
const hours = new Map(); // by the number of the ten seconds: by worker: its sample

async function showHour() {
  const newest = Math.max(0, ...hours.keys());
  const { workers } = await get("overview/hour", { after: Math.max(0, (newest - 2) * SAMPLE_S) });
  for (const [worker, hour] of Object.entries(workers)) {
    hour.at.forEach((at, index) => {
      const slot = Math.floor(at / SAMPLE_S);
      if (!hours.has(slot)) hours.set(slot, new Map());
      hours.get(slot).set(worker, Object.fromEntries([...FIGURES, "delivery"].map((name) => [name, hour[name][index]])));
    });
  }
  const oldest = Math.max(...hours.keys()) - 360;
  for (const slot of hours.keys()) if (slot < oldest) hours.delete(slot);
  const slots = new Map();
  for (const [slot, samples] of hours) {
    const sums = { delivery: [] };
    for (const name of FIGURES) sums[name] = [...samples.values()].reduce((sum, sample) => sum + sample[name], 0);
    for (const { delivery } of samples.values()) {
      delivery.forEach((count, bound) => { sums.delivery[bound] = (sums.delivery[bound] ?? 0) + count; });
    }
    slots.set(slot, sums);
  }
  const numbers = [...slots.keys()].sort((a, b) => a - b);
  // A worker that has no sample of the newest ten seconds yet would look like a fall of every figure.
  if (numbers.length > 1 && hours.get(numbers.at(-1)).size < hours.get(numbers.at(-2)).size) numbers.pop();
  const times = numbers.map((slot) => slot * SAMPLE_S);
  const of = (name, per = 1) => numbers.map((slot) => slots.get(slot)[name] / per);
  charts.connections.show(times, of("connections"));
  charts.events.show(times, of("published", SAMPLE_S), of("deliveries", SAMPLE_S));
  charts.delivery.show(times, ...[0.5, 0.95, 0.99].map((fraction) => numbers.map((slot) => quantile(slots.get(slot).delivery, fraction))));
  charts.refused.show(times, of("refused", SAMPLE_S));
  charts.bytes.show(times, of("delivered_bytes", SAMPLE_S));
  charts.memory.show(times, of("memory"));
}

async function refreshHour() {
  if (!document.hidden) await showHour().catch((error) => { if (!(error instanceof Problem)) throw error; });
  setTimeout(refreshHour, SAMPLE_S * 1000);
}
refreshHour();

for await (const report of stream("overview")) {
  showVerdict(report);
  showFigures(report);
  showWorkers(report);
}
