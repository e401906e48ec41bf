import { rows, since } from "./dom.js";
import { stream } from "./live.js";

const workers = document.getElementById("workers");
const verdict = document.querySelector("#verdict h2");

for await (const report of stream("overview")) {
  verdict.textContent = `${report.workers.length} of ${report.expected} workers answer.`;
  rows(workers, report.workers.map((one) => [one.node, String(one.pid), one.version, since(one.started)]));
}
