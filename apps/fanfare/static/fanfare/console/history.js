import { el, fill, number } from "./dom.js";
import { applications, clock, pretty } from "./events.js";
import { Problem, get, showState } from "./live.js";

const form = document.getElementById("find");
const problem = document.getElementById("problem");
const timeline = document.getElementById("timeline");
const slider = document.getElementById("slider");
const when = document.getElementById("when");
const items = document.getElementById("items");
const title = document.getElementById("state-title");
const state = document.getElementById("state");
const members = document.getElementById("members");
const back = document.getElementById("back");
const forward = document.getElementById("forward");
const replay = document.getElementById("replay");
const LONGEST_PAUSE_MS = 2000; // of a replay, however long nothing happened
const SHOWN = 50;

let events = [];
let isState = false;
let recordsMembers = false;
let membersSince = null;
let membersBehind = false;
let timer = 0;

const date = (seconds) => new Date(seconds * 1000).toLocaleDateString("en-GB");

function show() {
  const index = Number(slider.value);
  const at = events[index];
  if (!at) return;
  // Not `disabled`: the button that has the focus would lose it.
  back.setAttribute("aria-disabled", String(index === 0));
  for (const button of [forward, replay]) button.setAttribute("aria-disabled", String(index === events.length - 1));
  when.textContent = `${date(at.at)} ${clock(at.at)} · offset ${at.offset}`;
  const shown = isState ? events.slice(0, index + 1).findLast((one) => one.type === "event") ?? at : at;
  title.textContent = `${isState ? "The state" : "The newest event"} of ${at.channel} at that time: ${shown.event ?? shown.text}`;
  state.textContent = pretty(shown.data ?? "");
  members.hidden = !recordsMembers;
  members.textContent = at.members
    ? `Members at that time: ${number(at.member_count)}${at.members.length ? ` (${at.members.join(", ")}${at.member_count > at.members.length ? ", …" : ""})` : ""}`
    : membersBehind ? "The members are not known: the latest joins and leaves are not recorded yet. Show the channel again in some seconds."
    : membersSince === null || at.at > membersSince
      ? "The members at that time are not known."
      : `The members are not known before ${date(membersSince)} ${clock(membersSince)}, when their recording began.`;
  fill(
    items,
    events.slice(Math.max(0, index + 1 - SHOWN), index + 1).reverse().map((one) =>
      el("li", { "data-type": one.type }, el("details", {}, el("summary", {},
        el("time", {}, clock(one.at)), el("span", { class: "tail-type" }, String(one.offset)), el("span", {}, one.event ?? one.text ?? one.type), el("span", {}, one.user ?? ""),
        el("span", { class: "console-quiet" }, (one.data ?? "").slice(0, 300))), el("pre", {}, pretty(one.data ?? "")))),
    ),
  );
}

function move(steps) {
  slider.value = String(Number(slider.value) + steps);
  show();
}

function stop() {
  clearTimeout(timer);
  timer = 0;
  replay.setAttribute("aria-pressed", "false");
  replay.textContent = "Replay from here";
}

function play() {
  const index = Number(slider.value);
  if (index + 1 >= events.length) return stop();
  const pause = ((events[index + 1].at - events[index].at) * 1000) / Number(document.getElementById("speed").value);
  timer = setTimeout(() => {
    move(1);
    play();
  }, Math.min(Math.max(pause, 30), LONGEST_PAUSE_MS));
}

async function look(before) {
  problem.hidden = true;
  stop();
  try {
    const args = { app: form.elements.app.value, channel: form.elements.channel.value.trim(), before, limit: 200 };
    history.replaceState(null, "", `?${new URLSearchParams({ app: args.app, channel: args.channel })}`);
    const found = await get("timeline", args);
    showState("live", "Live");
    if (!found.events.length) throw new Problem(before ? "No older event is kept." : "The channel has no kept event. Publish one to it.", 404);
    events = before ? [...found.events, ...events] : found.events;
    isState = found.is_state;
    recordsMembers = found.records_members;
    membersSince = found.members_since;
    membersBehind = found.members_behind;
    slider.max = String(events.length - 1);
    slider.value = before ? String(found.events.length - 1) : slider.max;
    timeline.hidden = false;
    show();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    problem.textContent = error.message;
    problem.hidden = false;
    if (!before) timeline.hidden = true;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  look();
});
slider.addEventListener("input", () => {
  stop();
  show();
});
document.getElementById("older").addEventListener("click", () => look(events[0].offset));
back.addEventListener("click", () => move(-1));
forward.addEventListener("click", () => move(1));
replay.addEventListener("click", () => {
  if (timer) return stop();
  replay.setAttribute("aria-pressed", "true");
  replay.textContent = "Stop";
  play();
});

const wanted = new URLSearchParams(location.search);
form.elements.channel.value = wanted.get("channel") ?? "";
await applications(form.elements.app, true);
showState("live", "Live");
if (form.elements.channel.value) await look();
