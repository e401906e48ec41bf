import { choose, parameters, remember } from "./applications.js";
import { bytes, duration, el, fill, number, rows } from "./dom.js";
import { every, get } from "./live.js";

const place = (id) => document.getElementById(id);
const form = place("search");
let after = "";
let before = 0;

async function showList() {
  const { channels, next } = await get("channels", { app: form.app.value, text: form.text.value, after });
  rows(
    place("channels"),
    channels.map((one) => [
      el("a", { href: `?${new URLSearchParams({ app: form.app.value, text: form.text.value, channel: one.name })}`, class: "console-mono" }, one.name),
      { text: number(one.subscriptions), class: "num" },
      { text: one.name.startsWith("presence-") ? number(one.users) : "–", class: "num" },
    ]),
    form.text.value
      ? "No occupied channel has this text in its name."
      : "No channel has a subscriber. A channel appears here when a client subscribes to it.",
    channels.map((one) => one.name),
  );
  place("first").hidden = !after;
  place("next").hidden = !next;
  place("next").dataset.after = next ?? "";
}

async function showChannel() {
  const name = parameters.get("channel");
  place("channel").hidden = !name;
  if (!name) return;
  const one = await get("channel", { app: form.app.value, channel: name, before });
  place("channel-name").textContent = name;
  const facts = [
    ["Subscriptions", number(one.subscriptions)],
    ["Users", name.startsWith("presence-") ? number(one.users) : "–"],
    ["Position", one.position ?? "–"],
    ["Cached event", one.cached ? `for ${duration(one.cached.ttl)}` : "–"],
  ];
  fill(place("facts"), facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))));
  place("kept").textContent = one.keeps
    ? `A channel rule keeps the newest ${number(one.keeps.size)} events for ${duration(one.keeps.seconds)}.`
    : "No channel rule matches this channel, so it keeps no events. Add a rule on the page of the application.";
  rows(
    place("history"),
    one.history.map((event) => [number(event.offset), event.event, { text: el("code", {}, event.data), class: "console-wide" }, event.user ?? ""]),
    "No event is kept.",
    one.history.map((event) => event.offset),
  );
  place("older").hidden = !one.next;
  place("older").dataset.before = one.next ?? "";
  place("newest").hidden = !before;
  place("members-part").hidden = !one.members.length;
  rows(place("members"), one.members.map((member) => [member.id, el("code", {}, member.info)]));
  if (one.users > one.members.length) {
    place("members").append(el("tr", {}, el("td", { colspan: 2 }, 
      `And ${number(one.users - one.members.length)} more. The page Connections finds the connections of a user.`)));
  }
  place("cached-part").hidden = !one.cached;
  if (one.cached) {
    place("cached-title").textContent = `The cached event, ${bytes(one.cached.frame.length)}`;
    place("cached").textContent = one.cached.frame;
  }
}

const ready = choose(form.app);
form.text.value = parameters.get("text") ?? "";
const update = every(3000, async () => {
  const applications = await ready;
  if (!applications.size) {
    rows(place("channels"), [], "There is no application yet. Add one under Applications.");
    return;
  }
  await showList();
  await showChannel();
});
const search = () => {
  after = "";
  remember({ app: form.app.value, text: form.text.value });
  update();
};
form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
form.app.addEventListener("change", () => { remember({ channel: "" }); search(); });
place("first").addEventListener("click", () => { after = ""; update(); });
place("next").addEventListener("click", (event) => { after = event.currentTarget.dataset.after; update(); });
place("newest").addEventListener("click", () => { before = 0; update(); });
place("older").addEventListener("click", (event) => { before = Number(event.currentTarget.dataset.before); update(); });
