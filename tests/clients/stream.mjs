// A page that shows streams, PLUGIN=1: with the plugin, else with ten lines of plain pusher-js.
// Lines: {"subscribed"}, {"id", "state", "text", "meta", "events"} whenever a stream changes. Input: {"cancel": id}.

import { createInterface } from "node:readline";
import { install } from "../../apps/fanfare/static/fanfare/resume.mjs";
import { Pusher, options, tell } from "./subscriber.mjs";

const { KEY, CHANNEL, PLUGIN } = process.env;
if (PLUGIN) install(Pusher, { jitter: 100 });
const pusher = new Pusher(KEY, options());
const channel = pusher.subscribe(CHANNEL);
channel.bind("pusher:subscription_succeeded", () => tell({ subscribed: CHANNEL }));

let events = 0;
if (PLUGIN) {
  channel.stream("answer", (text, { id, state, meta }) => {
    events += 1;
    tell({ id, state, text, meta, events });
  });
} else {
  const texts = {};
  channel.bind("answer", ({ id, at, text, state, meta }) => {
    texts[id] = (texts[id] ?? "").slice(0, at) + text;
    events += 1;
    tell({ id, state, text: texts[id], meta, events });
  });
}
createInterface({ input: process.stdin }).on("line", (line) => {
  channel.trigger("client-fanfare-cancel", { id: JSON.parse(line).cancel });
});
setInterval(() => {}, 2 ** 30);
