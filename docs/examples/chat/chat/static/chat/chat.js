"use strict";

const form = document.getElementById("ask");
const token = form.elements.csrfmiddlewaretoken.value;

// -- The two ways to read a stream ---------------------------------------------------------------------------------------

if (form.dataset.key) {
  // Plain pusher-js.
  const pusher = new Pusher(form.dataset.key, {
    cluster: "",
    wsHost: location.hostname,
    wsPort: location.port || 80,
    forceTLS: false,
    enabledTransports: ["ws"],
    channelAuthorization: { endpoint: "/pusher/auth", headers: { "X-CSRFToken": token } },
  });
  const channel = pusher.subscribe(form.dataset.channel);
  channel.bind("question", ({ id, text }) => ask(id, text));
  channel.bind("pusher:subscription_error", ({ status }) => {
    // The server restarts, and pusher-js does not repeat the auth request.
    if ([0, 502, 503, 504].includes(status)) setTimeout(() => pusher.subscribe(channel.name), 1000);
  });
  const texts = {};
  channel.bind("answer", ({ id, at, text, state }) => {
    texts[id] = (texts[id] ?? "").slice(0, at) + text;
    show(id, texts[id], state);
  });
} else {
  // {% fanfare_client %} and its plugin.
  const channel = fanfare.subscribe(form.dataset.channel);
  channel.bind("question", ({ id, text }) => ask(id, text));
  channel.stream("answer", (text, stream) => show(stream.id, text, stream.state));
}

// -- The page ------------------------------------------------------------------------------------------------------------

function turn(id) {
  const found = document.getElementById(`turn-${id}`);
  if (found) return found;
  const made = document.createElement("li");
  made.id = `turn-${id}`;
  made.dataset.state = "open";
  made.append(document.createElement("b"), document.createElement("p"), document.createElement("button"));
  made.lastChild.textContent = "Stop";
  document.getElementById("turns").append(made);
  return made;
}

function ask(id, text) {
  turn(id).querySelector("b").textContent = text;
}

function show(id, text, state) {
  turn(id).dataset.state = state;
  turn(id).querySelector("p").textContent = text;
}

document.getElementById("turns").addEventListener("click", ({ target }) => {
  if (target.tagName !== "BUTTON") return;
  const id = target.closest("li").id.replace("turn-", "");
  fetch(`/stop/${id}/`, { method: "POST", headers: { "X-CSRFToken": token } });
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const response = await fetch(form.action, { method: "POST", body: new FormData(form) });
  if (response.ok) form.reset();
});
