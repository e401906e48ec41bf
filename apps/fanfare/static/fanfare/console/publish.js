import { el, fill, number } from "./dom.js";
import { applications, milliseconds, values } from "./events.js";
import { Problem, get, post, showState } from "./live.js";

const form = document.getElementById("create");
const problem = document.getElementById("problem");
const result = document.getElementById("result");

async function watch(published) {
  for (let turn = 0; turn < 8; turn += 1) {
    await new Promise((done) => setTimeout(done, turn === 0 ? 150 : 700));
    const found = await get("trace", { entry: published.entry });
    const deliveries = found.workers.map((one) => one.delivery);
    const written = deliveries.reduce((sum, one) => sum + (one.written ?? 0), 0);
    const sockets = deliveries.flatMap((one) => one.sockets ?? []);
    const last = Math.max(0, ...deliveries.map((one) => one.last_ms ?? 0));
    fill(
      result,
      el("h2", {}, `Published to ${published.channel}`),
      el("p", {}, "Position ", el("a", { href: `../trace/?entry=${encodeURIComponent(published.entry)}` }, published.entry),
        published.position ? `, ${published.position} in the channel's history` : "", "."),
      el("p", {}, written
        ? `Written to ${number(written)} ${written === 1 ? "socket" : "sockets"} within ${milliseconds(last)}.`
        : published.subscribers ? "The workers have not reported it yet." : "The channel has no subscribers: nothing was written."),
      !published.is_json && el("p", { class: "console-warn" }, "The data is not JSON. Clients that parse it fail; pusher-js gives it to them as a text."),
      sockets.length > 0 && el("ul", { class: "console-mono" }, sockets.map((one) => el("li", {}, `${one.socket}${one.user ? ` (${one.user})` : ""}`))),
    );
    if (written >= published.subscribers) return;
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  problem.hidden = true;
  try {
    const published = await post("publish", values(form));
    showState("live", "Live");
    if (published.entry) await watch(published);
    else fill(result, el("p", {}, "Published. This engine reports no positions."));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    problem.textContent = error.message;
    problem.hidden = false;
  }
});

const found = await applications(form.elements.app, true);
showState("live", found.length ? "Live" : "There is no application yet. Create one in the admin.");
