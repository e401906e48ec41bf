// The room: pusher-js, the page's own requests, and the DOM. Whatever somebody wrote is put in as text, never as HTML.
"use strict";

const config = JSON.parse(document.getElementById("config").textContent);
const [me, log, list, empty, typing, form, input, send, problem, members, count, state] = [
  "me", "log", "messages", "empty", "typing", "form", "text", "send", "problem", "members", "count", "state",
].map((id) => document.getElementById(id));

// -- Who I am: each window is a guest of its own, and stays the same one when it is reloaded. ------------------------------------

const guest = JSON.parse(sessionStorage.getItem("guest") ?? "null") ?? config.guest;
sessionStorage.setItem("guest", JSON.stringify(guest));
me.textContent = guest.name;

// -- The connection --------------------------------------------------------------------------------------------------------------

const csrfToken = () =>
  document.cookie.split("; ").find((cookie) => cookie.startsWith(`${config.csrfCookie}=`))?.split("=")[1] ?? "";

const pusher = new Pusher(config.key, {
  ...config.options,
  channelAuthorization: {
    endpoint: config.authEndpoint,
    params: { guest: guest.token },
    headersProvider: () => ({ "X-CSRFToken": csrfToken() }),
  },
});

const words = {
  initialized: "Connecting…",
  connecting: "Connecting…",
  connected: "Connected",
  unavailable: "No connection. Trying again…",
  failed: "This browser has no WebSockets",
  disconnected: "Refused by the server",
};
pusher.connection.bind("state_change", ({ current }) => {
  state.dataset.state = current;
  state.textContent = words[current];
  if (current !== "connected") setOpen(false);
});

const room = pusher.subscribe(config.channel);
room.bind("pusher:subscription_succeeded", async () => {
  setOpen(true);
  showMembers();
  await catchUp();
});
room.bind("pusher:subscription_error", ({ status }) => {
  sessionStorage.removeItem("guest"); // made by a server with another secret key, perhaps
  complain(`The room did not let you in (${status}). Reload the page.`);
});

function setOpen(open) {
  input.disabled = send.disabled = !open;
}

function complain(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

// -- Messages --------------------------------------------------------------------------------------------------------------------

let newest = 0; // the highest id that is shown
const sentAt = new Map(); // my texts on their way: text → when it left

room.bind("message", (message) => show(message));

// What was said before this page joined, or while it was away.
async function catchUp() {
  try {
    const response = await fetch(`${form.action}?after=${newest}`);
    if (!response.ok) throw new Error(response.status);
    for (const message of (await response.json()).messages) show(message);
  } catch {
    complain("Some messages could not be loaded. Reload the page to see them.");
  }
}

function show(message) {
  if (document.getElementById(`message-${message.id}`)) return;
  const entry = document.createElement("li");
  entry.id = `message-${message.id}`;
  entry.dataset.author = message.author_id;

  const who = element("span", "who");
  const time = element("time", "", new Date(message.sent_at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = message.sent_at;
  who.append(element("b", "", message.author), time);
  const left = message.author_id === guest.id && sentAt.get(message.text);
  if (left) {
    who.append(element("span", "took", `here in ${Math.round(performance.now() - left)} ms`));
    sentAt.delete(message.text);
  }
  entry.append(mark(message.author_id, message.author), who, element("span", "said", message.text));

  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  // Ids grow with time. A message of the past comes before those that arrived meanwhile.
  const later = message.id < newest && [...list.children].find((other) => Number(other.id.slice("message-".length)) > message.id);
  list.insertBefore(entry, later || null);
  newest = Math.max(newest, message.id);
  empty.hidden = true;
  stopTyping(message.author_id);
  if (atEnd || message.author_id === guest.id) log.scrollTop = log.scrollHeight;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = input.value.trim();
  if (!text) return;
  complain("");
  send.disabled = true;
  sentAt.set(text, performance.now());
  try {
    const response = await fetch(form.action, {
      method: "POST",
      headers: { "X-CSRFToken": csrfToken() },
      body: new URLSearchParams({ guest: guest.token, text }),
    });
    if (response.ok) {
      input.value = "";
      lastTyped = 0;
      show(await response.json()); // mostly the event was quicker
    } else {
      const { error } = await response.json().catch(() => ({}));
      complain(error ?? `The message was not accepted (${response.status}).`);
    }
  } catch {
    complain("The server cannot be reached. Your message is still here.");
  }
  sentAt.delete(text);
  send.disabled = room.subscribed !== true;
  input.focus();
});

// -- Who is here -----------------------------------------------------------------------------------------------------------------

function showMembers() {
  const others = [];
  room.members.each((member) => { if (member.id !== guest.id) others.push(member); });
  others.sort((a, b) => a.info.name.localeCompare(b.info.name));
  members.replaceChildren(...[room.members.me, ...others].filter(Boolean).map((member) => {
    const entry = document.createElement("li");
    entry.dataset.id = member.id;
    entry.append(mark(member.id, member.info.name), element("span", "name", member.info.name));
    if (member.id === guest.id) entry.append(element("span", "you", "you"));
    return entry;
  }));
  count.textContent = room.members.count;
}
room.bind("pusher:member_added", showMembers);
room.bind("pusher:member_removed", (member) => {
  stopTyping(member.id);
  showMembers();
});

// -- Who is typing: events from client to client, never saved ---------------------------------------------------------------------

const TYPING_EVERY_MS = 1500; // an application allows ten client events a second; nobody needs more than this
const TYPING_LASTS_MS = 4000;
let lastTyped = 0;
const typists = new Map(); // id → timer

input.addEventListener("input", () => {
  if (!input.value || !room.subscribed || Date.now() - lastTyped < TYPING_EVERY_MS) return;
  lastTyped = Date.now();
  room.trigger("client-typing", {});
});

room.bind("client-typing", (_, { user_id: id }) => {
  clearTimeout(typists.get(id));
  typists.set(id, setTimeout(() => stopTyping(id), TYPING_LASTS_MS));
  showTyping();
});

function stopTyping(id) {
  clearTimeout(typists.get(id));
  if (typists.delete(id)) showTyping();
}

function showTyping() {
  const names = [...typists.keys()].map((id) => room.members.get(id)?.info.name).filter(Boolean);
  typing.textContent =
    names.length > 2 ? "Several people are typing…"
    : names.length ? `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing…`
    : "";
}

// -- DOM -------------------------------------------------------------------------------------------------------------------------

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

// A round mark with initials; the colour belongs to the id.
function mark(id, name) {
  const tone = [...id].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % 8;
  const made = element("span", `mark tone-${tone}`, name.split(" ").map((word) => word[0]).join("").slice(0, 2));
  made.setAttribute("aria-hidden", "true");
  return made;
}
