import { el, fill, number, rows, since } from "./dom.js";
import { every, get, post, Problem, rights, showState } from "./live.js";

const place = (id) => document.getElementById(id);
const form = place("search");

async function act(path, body) {
  try {
    await post(path, body);
    await show();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showState("problem", error.message);
  }
}

function stateOf(one) {
  if (!one.enabled) return el("span", { class: "console-warn" }, "paused: its events wait");
  if (one.open) return el("span", { class: "console-bad" }, `fails: ${one.error}`);
  if (one.failures) return el("span", { class: "console-warn" }, one.error);
  return el("span", { class: "console-good" }, "well");
}

function pause(one) {
  if (!rights.has("manage_webhooks") || one.declared) return "";
  return el("button", { type: "button", class: "button", "aria-label": `${one.enabled ? "Pause" : "Resume"} ${one.url}`, onclick: () => act("webhooks/pause", { app: one.app, endpoint: one.id, enabled: !one.enabled }) }, one.enabled ? "Pause" : "Resume");
}

function answer(one) {
  const summary = one.error || (one.status ? `HTTP ${one.status}` : "not sent yet");
  return el("details", {}, el("summary", {}, summary), el("p", {}, `To ${one.url}`), el("p", {}, "Body"), el("pre", { tabindex: 0 }, one.body), one.answer ? [el("p", {}, "Answer"), el("pre", { tabindex: 0 }, one.answer)] : null);
}

async function show() {
  const { endpoints, deliveries } = await get("webhooks", { endpoint: form.endpoint.value, state: form.state.value });
  const chosen = form.endpoint.value;
  fill(form.endpoint, el("option", { value: "" }, "all endpoints"), endpoints.map((one) => el("option", { value: one.id }, one.url)));
  form.endpoint.value = chosen;
  rows(
    place("endpoints"),
    endpoints.map((one) => [
      el("span", { class: "console-mono" }, one.url),
      one.application,
      stateOf(one),
      { text: number(one.pending), class: "num" },
      { text: number(one.failures), class: "num" },
      one.succeeded_at ? `${since(one.succeeded_at)} ago` : "never",
      pause(one),
    ]),
    "No application has a webhook. Add one on the page of the application.",
    endpoints.map((one) => `${one.app} ${one.id}`),
  );
  rows(
    place("deliveries"),
    deliveries.map((one) => [
      one.event,
      el("span", { class: "console-mono" }, one.channel),
      el("span", { class: { failed: "console-bad", pending: "console-warn", delivered: "console-good" }[one.state] }, one.state),
      { text: number(one.attempts), class: "num" },
      answer(one),
      { text: one.took_ms === null ? "–" : `${number(one.took_ms)} ms`, class: "num" },
      { text: since(one.created), class: "num" },
      rights.has("manage_webhooks") && one.state !== "pending"
        ? el("button", { type: "button", class: "button", "aria-label": `Redeliver ${one.event} of ${one.channel}`, onclick: () => act("webhooks/redeliver", { app: one.app, delivery: one.id }) }, "Redeliver")
        : "",
    ]),
    "No delivery is in this list. An endpoint gets one for each event that its filters select.",
    deliveries.map((one) => one.id),
  );
}

every(5000, show);
form.addEventListener("change", () => show().catch((error) => showState("problem", error.message)));
