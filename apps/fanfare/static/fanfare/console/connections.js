import { choose, parameters, remember } from "./applications.js";
import { bytes, counted, el, fill, number, rows, since } from "./dom.js";
import { every, get, post, Problem, rights, showState } from "./live.js";

const place = (id) => document.getElementById(id);
const form = place("search");
const ask = place("ask");
let asked = null; // the connection that the dialog is about

function channels(one) {
  if (!one.channels) return "–";
  const names = one.channels > one.names.length ? [...one.names, `and ${number(one.channels - one.names.length)} more`] : one.names;
  if (one.channels === 1) return el("code", {}, names[0]);
  return el("details", {}, el("summary", {}, number(one.channels)), names.map((name) => el("div", { class: "console-mono" }, name)));
}

function disconnect(one) {
  asked = one;
  const choices = [
    ["socket", one.socket, "this socket"],
    ...one.users.map((user) => ["user", user, `all connections of the user ${user}`]),
    ...(one.address ? [["address", one.address, `all connections from the address ${one.address}`]] : []),
    ...one.tokens.map((token) => ["token", token, `none: revoke the token ${token}`]),
  ];
  fill(ask.querySelector("[name=by]"), choices.map(([by, value, text]) => el("option", { value: JSON.stringify([by, value]) }, text)));
  ask.showModal();
}

ask.addEventListener("close", async () => {
  if (ask.returnValue !== "yes") return;
  const [by, value] = JSON.parse(ask.querySelector("[name=by]").value);
  try {
    if (by === "token") await post("revoke", { app: asked.app, token: value });
    else await post("disconnect", { app: asked.app, by, value, returns: ask.querySelector("[name=returns]").checked });
    await show();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showState("problem", error.message);
  }
});

const revoking = place("revoke");
if (rights.has("disconnect_client")) {
  revoking.hidden = false;
  choose(revoking.app).catch(() => {}); // the list shows the same problem
}
revoking.addEventListener("submit", async (event) => {
  event.preventDefault();
  const said = revoking.querySelector("[role=status]");
  const token = revoking.token.value;
  try {
    await post("revoke", { app: revoking.app.value, token });
    said.textContent = `The token ${token} is revoked.`;
    revoking.token.value = "";
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    said.textContent = error.message;
  }
});

const names = choose(form.app, { all: "All" });
for (const name of ["text", "channel", "sort"]) form[name].value = parameters.get(name) ?? form[name].value;

async function show() {
  const applications = await names;
  const args = Object.fromEntries(["app", "text", "channel", "sort"].map((name) => [name, form[name].value]));
  const { connections, matching, missing } = await get("connections", args);
  const isFiltered = args.text || args.channel;
  place("count").textContent =
    (connections.length < matching ? `The first ${number(connections.length)} of ${number(matching)}: narrow the search to see others.` : `${counted(matching, "connection")}.`) +
    (missing ? ` ${counted(missing, "worker")} did not answer.` : "");
  rows(
    place("connections"),
    connections.map((one) => [
      el("span", { class: "console-mono" }, one.socket),
      applications.get(one.app) ?? one.app,
      one.client ? `${one.client} ${one.version}` : "–",
      one.address || "–",
      one.users.join(", ") || "–",
      channels(one),
      { text: bytes(one.buffered), class: one.buffered > 65_536 ? "num console-warn" : "num" },
      { text: since(one.opened), class: "num" },
      one.resumes ? "yes" : "no",
      rights.has("disconnect_client") ? el("button", { type: "button", class: "button", "aria-label": `Disconnect ${one.socket}`, onclick: () => disconnect(one) }, "Disconnect…") : "",
    ]),
    isFiltered ? "No connection matches." : "No client is connected. The landing page has snippets for a first one.",
    connections.map((one) => [one.socket, ...one.users, ...one.tokens].join(" ")), // the button's dialog offers these
  );
}

const update = every(3000, show);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  remember(Object.fromEntries(["app", "text", "channel", "sort"].map((name) => [name, form[name].value])));
  update();
});
for (const name of ["app", "sort"]) form[name].addEventListener("change", () => form.requestSubmit());
