import { counted, el, fill, number, rows } from "./dom.js";
import { applications, clock, milliseconds } from "./events.js";
import { Problem, every, get } from "./live.js";

const form = document.getElementById("find");
const problem = document.getElementById("problem");
const way = document.getElementById("way");
const events = document.getElementById("events");
const kind = document.getElementById("kind");

function publisher(publication) {
  if (!publication) return [el("p", {}, "The publisher is not recorded: the event was not in the sample, or its record has expired.")];
  const { by, ...more } = publication.publisher;
  const rest = Object.entries(more).map(([name, value]) => `${name} ${value}`).join(", ");
  const took = (publication.committed - publication.began) * 1000;
  if (publication.committed === undefined) return [el("p", {}, `By ${by}: ${rest}.`)];
  return [
    el("p", {}, `By ${by}${rest ? `: ${rest}` : ""}, in process ${publication.pid} of ${publication.node}.`),
    el("p", { class: "console-quiet" }, `Called at ${clock(publication.began)}; in the log ${milliseconds(took)} later.`),
  ];
}

function skipped(delivery) {
  const found = [];
  if (delivery.excluded && !delivery.client) found.push(`${delivery.excluded} was excluded by the publisher`);
  if (delivery.slow?.length) found.push(`${delivery.slow.length} read too slowly and were disconnected: ${delivery.slow.join(", ")}`);
  if (delivery.conflated) found.push(`${delivery.conflated} slow readers get only the newest state: ${(delivery.conflated_sockets ?? []).join(", ")}`);
  if (delivery.catching_up) found.push(`${delivery.catching_up} get it from their recovery, which is under way`);
  if (delivery.waiting) found.push(`${delivery.waiting} were not subscribed yet`);
  return found;
}

function worker(one) {
  const delivery = one.delivery;
  if (delivery.read === undefined) return el("li", {}, el("h3", {}, `Process ${one.pid} of ${one.node}`), el("p", {}, "Only recoveries sent it here."));
  const notes = skipped(delivery);
  const sockets = delivery.sockets?.map((socket) => `${socket.socket}${socket.user ? ` (${socket.user})` : ""}${socket.buffered ? `, ${number(socket.buffered)} bytes buffered` : ""}`);
  return el(
    "li", {},
    el("h3", {}, `Process ${one.pid} of ${one.node}`),
    el("p", {}, `Read after ${milliseconds(delivery.read_ms)}. Written to ${number(delivery.written)} ${delivery.written === 1 ? "socket" : "sockets"}${delivery.joined > 1 ? `, joined with ${delivery.joined - 1} other events` : ""}.`),
    delivery.written > 0 && el("p", { class: "console-quiet" }, `Half of the sockets after ${milliseconds(delivery.p50_ms)}, 95 % after ${milliseconds(delivery.p95_ms)}, 99 % after ${milliseconds(delivery.p99_ms)}, the last after ${milliseconds(delivery.last_ms)}.`),
    notes.length > 0 && el("p", {}, `Skipped: ${notes.join("; ")}.`),
    sockets?.length > 0 && el("details", {}, el("summary", {}, sockets.length === 1 ? "The socket" : `The ${sockets.length} sockets`), el("p", { class: "console-mono" }, sockets.join(" · "))),
  );
}

function show(found) {
  const first = found.workers.find((one) => one.delivery.created)?.delivery;
  const isSample = first && found.workers.some((one) => one.delivery.read !== undefined && !one.delivery.sockets);
  const replays = found.workers.flatMap((one) => one.delivery.replays ?? []);
  fill(
    way,
    el("h2", {}, `Event ${found.entry}${first ? ` on ${first.channel}` : ""}`),
    found.missing > 0 && el("p", { class: "console-warn" }, `${counted(found.missing, "worker")} did not answer.`),
    el(
      "ol", { class: "trace-way" },
      el("li", {}, el("h3", {}, "Published"), publisher(found.publication)),
      first && el("li", {}, el("h3", {}, "Stored"), el("p", {}, `At ${clock(first.created)}, by the clock of the engine.`)),
      found.workers.map(worker),
      found.workers.length === 0 && el("li", {}, el("h3", {}, "Delivered"), el("p", {}, "No worker has a record of it: it had no subscribers, it was not in the sample, or its record has expired. Choose its application and channel above to have every event recorded.")),
      isSample && el("li", {}, el("h3", {}, "Other workers"), el("p", { class: "console-quiet" }, "The event was recorded as part of a sample, so other workers may have delivered it without a record. Choose its application and channel above to have every event recorded by all workers.")),
      found.webhooks.length > 0 && el("li", {}, el("h3", {}, "Webhooks"), found.webhooks.map((one) => el("p", {}, `${one.event} to ${one.url}: ${one.state} after ${counted(one.attempts, "attempt")}${one.status ? `, status ${one.status}` : ""}${one.error ? `, ${one.error}` : ""}`))),
      replays.length > 0 && el("li", {}, el("h3", {}, "Recovered later"), replays.map((one) => el("p", {}, `${clock(one.at)} by ${one.socket}${one.user ? ` (${one.user})` : ""}`))),
    ),
  );
}

/** The address of an event, which keeps the channel that is being recorded. */
function address(entry) {
  const args = { entry, app: form.elements.app.value, channel: form.elements.channel.value.trim() };
  return `?${new URLSearchParams(Object.entries(args).filter(([, value]) => value))}`;
}

async function trace() {
  const entry = form.elements.entry.value.trim();
  problem.hidden = true;
  if (!entry) return fill(way);
  history.replaceState(null, "", address(entry));
  try {
    show(await get("trace", { entry }));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    fill(way);
    problem.textContent = error.message;
    problem.hidden = false;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  trace();
  refresh();
});

const wanted = new URLSearchParams(location.search);
form.elements.entry.value = wanted.get("entry") ?? "";
form.elements.channel.value = wanted.get("channel") ?? "";
await applications(form.elements.app, Boolean(form.elements.channel.value));
await trace();
const refresh = every(2000, async () => {
  const channel = form.elements.channel.value.trim();
  const found = await get("traces", { app: form.elements.app.value, channel: form.elements.app.value ? channel : "" });
  kind.textContent = found.complete
    ? "Every event of this channel is recorded while this page is open."
    : "A sample of the events of all channels. Choose an application and a channel to have every event recorded.";
  rows(
    events,
    found.events.map((one) => [
      el("a", { href: address(one.entry), class: "console-mono" }, one.entry),
      clock(one.created), one.channel,
      { text: number(one.workers), class: "num" }, { text: number(one.written), class: "num" },
      { text: milliseconds(one.last_ms), class: "num" }, { text: number(one.slow), class: "num" }, { text: number(one.replays), class: "num" },
    ]),
    "No event has been recorded yet. Publish one to a channel that has subscribers.",
    found.events.map((one) => one.entry),
  );
});
