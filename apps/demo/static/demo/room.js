// The demo room. {% fanfare_client %} provides the connected client `window.fanfare`. Messages are inserted as text,
// never as HTML.
"use strict";

const [form, input, send, plug, kill, state, problem, log, messages, missed, typing, members, count] = [
  "form", "text", "send", "plug", "kill", "state", "problem", "log", "messages", "missed", "typing", "members", "count",
].map((id) => document.getElementById(id));
const me = form.elements.guest.value;
const room = fanfare.subscribe(form.dataset.channel);

// -- Connection: it reconnects by itself and recovers missed messages ----------------------------------------------------

const words = {
  connecting: "Connecting…",
  connected: "Connected",
  unavailable: "No connection. Trying again…",
  failed: "This browser does not support WebSockets",
  disconnected: "Disconnected",
};
fanfare.connection.bind("state_change", ({ current }) => {
  state.dataset.state = current;
  state.textContent = words[current];
  plug.textContent = current === "disconnected" ? "Connect" : "Disconnect";
  plug.disabled = false;
  if (kill) kill.disabled = current !== "connected";
  setOpen(false);
});
plug.addEventListener("click", () => {
  fanfare.connection.state === "disconnected" ? fanfare.connect() : fanfare.disconnect();
});

room.bind("pusher:subscription_succeeded", () => {
  setOpen(true);
  countMissed();
});
room.bind("pusher:subscription_error", ({ status }) => complain(`You cannot join the room (status ${status}).`));
document.addEventListener("fanfare:reset", () => location.reload()); // more messages were missed than the history has

function setOpen(isOpen) {
  input.disabled = send.disabled = !isOpen;
  if (isOpen) setTimeout(() => (log.ariaBusy = "false")); // screen readers skip the history
}

function complain(text) {
  problem.textContent = text;
}

// -- Messages: sent with a form, received as events, including one's own ------------------------------------------------

let waiting = null; // my unconfirmed message: its text and send time

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = input.value.trim();
  const body = new FormData(form);
  if (!text) return;
  complain("");
  input.value = "";
  input.focus();
  lastTyped = 0;
  waiting = { text, since: performance.now() };
  try {
    const response = await fetch(form.action, { method: "POST", body });
    if (response.ok) return;
    const { error } = await response.json().catch(() => ({}));
    complain(error ?? `The server refused the message (status ${response.status}).`);
  } catch {
    complain("The server cannot be reached. Your message was not sent.");
  }
  input.value ||= text;
});

room.bind("message", ({ guest, name, text, at, id }) => {
  arrived.add(id);
  const entry = draw("message", guest, name);
  const time = entry.querySelector("time");
  entry.querySelector(".said").textContent = text;
  time.dateTime = at;
  time.textContent = new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  entry.classList.toggle("more", messages.lastElementChild?.dataset.guest === guest);
  if (guest === me && text === waiting?.text) {
    time.after(` · ${Math.round(performance.now() - waiting.since)} ms`);
    waiting = null;
  }
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  messages.append(entry);
  if (atEnd || guest === me) log.scrollTop = log.scrollHeight;
  setTyping(guest, false);
});

// -- Missed messages: those in the channel's history that did not arrive ---------------------------------------------------

const SETTLE_MS = 1000; // for a message that is in the history and not yet here
const arrived = new Set();

async function countMissed() {
  const hadSome = arrived.size > 0;
  const response = await fetch(form.action).catch(() => null);
  if (!response?.ok) return; // counted after the next reconnect
  const { ids } = await response.json();
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  if (!ids.length && hadSome) {
    missed.textContent = "?";
    complain("Missed messages are lost and cannot be counted, because the room keeps no history: no channel rule matches it.");
    return;
  }
  const first = ids.findIndex((id) => arrived.has(id)); // the history may begin before this page
  const lost = first < 0 ? 0 : ids.slice(first).filter((id) => !arrived.has(id)).length;
  missed.textContent = lost;
  missed.parentElement.classList.toggle("some", lost > 0);
}

/** Kill the worker of this page's connection, and publish a message while the page has none. */
kill?.addEventListener("click", async () => {
  complain("");
  const body = new FormData(form);
  body.set("socket_id", fanfare.connection.socket_id);
  const response = await fetch(kill.dataset.url, { method: "POST", body }).catch(() => null);
  if (response && !response.ok) {
    const { error } = await response.json().catch(() => ({}));
    complain(error ?? `The worker was not killed (status ${response.status}).`);
    return;
  }
  body.set("text", "I was sent while the worker was dead.");
  body.set("id", crypto.randomUUID?.() ?? Math.random().toString(16).slice(2)); // one message, however often it is tried
  for (let attempt = 0; attempt < 10; attempt += 1) {
    const sent = await fetch(form.action, { method: "POST", body }).catch(() => null);
    if (sent?.ok) return;
    await new Promise((resolve) => setTimeout(resolve, 300)); // the connection was one to the worker that is gone
  }
  complain("No other worker took the message.");
});

// -- Members ----------------------------------------------------------------------------------------------------------------

for (const change of ["pusher:subscription_succeeded", "pusher:member_added", "pusher:member_removed"]) {
  room.bind(change, () => {
    const here = Object.entries(room.members.members).sort(([one], [other]) => (other === me) - (one === me));
    members.replaceChildren(...here.map(([id, { name }]) => draw("member", id, name)));
    count.textContent = room.members.count;
  });
}

// -- Typing indicator: client events between browsers ------------------------------------------------------------------------

const TYPING_EVERY_MS = 1500; // far below the default limit of ten client events a second
const TYPING_LASTS_MS = 4000;
let lastTyped = 0;
const typists = new Map(); // guest id → timer that clears it

input.addEventListener("input", () => {
  if (!input.value || Date.now() - lastTyped < TYPING_EVERY_MS) return;
  lastTyped = Date.now();
  room.trigger("client-typing", {});
});
room.bind("client-typing", (_, { user_id: guest }) => setTyping(guest, true));
room.bind("pusher:member_removed", ({ id }) => setTyping(id, false));

function setTyping(guest, isTyping) {
  clearTimeout(typists.get(guest));
  typists.delete(guest);
  if (isTyping) typists.set(guest, setTimeout(setTyping, TYPING_LASTS_MS, guest, false));
  const names = [...typists.keys()].map((id) => room.members.get(id)?.info.name).filter(Boolean);
  typing.textContent = names.length ? `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing…` : "";
}

// -- DOM ---------------------------------------------------------------------------------------------------------------------

/** A filled copy of a template. room.css has the colours of the names. */
function draw(template, guest, name) {
  const entry = document.getElementById(template).content.firstElementChild.cloneNode(true);
  entry.dataset.guest = guest;
  entry.querySelector(".name").textContent = name;
  entry.querySelector(".mark").textContent = name.replace(/[^A-Z]/g, "");
  entry.classList.toggle("mine", guest === me);
  return entry;
}
