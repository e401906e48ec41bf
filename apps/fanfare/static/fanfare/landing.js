// The landing page: shows the connection, publishes the form's event, lists the received events, and makes tabs of the
// snippets. All of it is inserted as text, never as HTML.
"use strict";

const { key, options } = JSON.parse(document.getElementById("connection").textContent);
const [state, socket, form, problem, heard, shownChannel] = [
  "state", "socket", "publish", "problem", "heard", "channel",
].map((id) => document.getElementById(id));

// -- The connection ----------------------------------------------------------------------------------------------------

const words = {
  initialized: "Connecting…",
  connecting: "Connecting…",
  connected: "This page is connected",
  unavailable: "No connection. Trying again…",
  failed: "This browser does not support WebSockets",
  disconnected: "Refused by the server",
};

const pusher = new Pusher(key, options);
pusher.connection.bind("state_change", ({ current }) => {
  state.dataset.state = current;
  state.textContent = words[current];
  socket.textContent = current === "connected" ? `socket ${pusher.connection.socket_id}` : "";
});

// -- Events: published with the form, received from the channel -----------------------------------------------------------

const SHOWN = 50;
let channel;
let sent = null; // the event of the form that has not arrived yet: its name, and when it was sent

/** Subscribe to a channel instead of the one before. Resolves when the server has answered. */
function listen(name) {
  if (channel?.name === name && channel.subscribed) return Promise.resolve();
  if (channel) pusher.unsubscribe(channel.name);
  shownChannel.textContent = name;
  channel = pusher.subscribe(name);
  channel.bind_global(show);
  return new Promise((resolve, reject) => {
    channel.bind("pusher:subscription_succeeded", resolve);
    channel.bind("pusher:subscription_error", ({ error }) =>
      reject(new Error(error ?? `This page may not subscribe to ${name}.`)));
  });
}

function show(event, data) {
  if (event.startsWith("pusher:")) return;
  const entry = document.createElement("li");
  entry.textContent = `${channel.name} / ${event}: ${JSON.stringify(data)}`;
  if (sent?.event === event) {
    const took = document.createElement("small");
    took.textContent = ` ${Math.round(performance.now() - sent.since)} ms`;
    entry.append(took);
    sent = null;
  }
  heard.prepend(entry);
  if (heard.children.length > SHOWN) heard.lastElementChild.remove();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = new FormData(form);
  problem.textContent = "";
  try {
    await listen(body.get("channel"));
    sent = { event: body.get("event"), since: performance.now() };
    const response = await fetch(location.pathname, { method: "POST", body });
    if (response.ok) return;
    const { error } = await response.json().catch(() => ({}));
    problem.textContent = error ?? `The server refused the event (status ${response.status}).`;
  } catch (error) {
    problem.textContent = error instanceof TypeError ? "The server cannot be reached." : error.message;
  }
  sent = null;
});

listen("orders").catch((error) => { problem.textContent = error.message; });

// -- Tabs: the snippets stand below each other without this script ----------------------------------------------------------

for (const box of document.querySelectorAll(".tabs")) {
  const snippets = [...box.querySelectorAll(":scope > .snippet")];
  const list = document.createElement("div");
  list.setAttribute("role", "tablist");
  list.setAttribute("aria-label", box.getAttribute("aria-label"));
  box.removeAttribute("aria-label");
  const tabs = snippets.map((snippet, index) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.textContent = snippet.dataset.tab;
    tab.id = `tab-${snippet.dataset.tab}`;
    snippet.id = `panel-${snippet.dataset.tab}`;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", snippet.id);
    snippet.setAttribute("role", "tabpanel");
    snippet.setAttribute("aria-labelledby", tab.id);
    tab.addEventListener("click", () => select(index));
    return tab;
  });

  function select(chosen) {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", index === chosen);
      tab.tabIndex = index === chosen ? 0 : -1;
      snippets[index].hidden = index !== chosen;
    });
  }

  list.addEventListener("keydown", ({ key: pressed }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[pressed];
    if (!step) return;
    const next = (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    select(next);
    tabs[next].focus();
  });
  list.append(...tabs);
  box.prepend(list);
  box.classList.add("ready");
  select(0);
}
