import { el, fill, rows } from "./dom.js";
import { applications, clock, values } from "./events.js";
import { Problem, every, get, post } from "./live.js";

const form = document.getElementById("examine");
const problem = document.getElementById("problem");
const diagnosis = document.getElementById("diagnosis");
const refusals = document.getElementById("refusals");

function fields() {
  const kind = form.elements.kind.value;
  for (const label of form.querySelectorAll("[data-for]")) label.hidden = !label.dataset.for.split(" ").some((one) => kind.startsWith(one) || one === kind.split(" ")[0]);
}

function mark(ok) {
  if (ok === null) return el("b", { class: "console-quiet" }, "Hint");
  return ok ? el("b", { class: "console-good" }, "Right") : el("b", { class: "console-bad" }, "Wrong");
}

async function examine() {
  problem.hidden = true;
  try {
    const found = await post("doctor", values(form));
    fill(
      diagnosis,
      el("section", { class: "console-verdict", "data-state": found.verdict.includes("accepts") ? "good" : "bad" }, el("h2", {}, found.verdict)),
      el("ul", { class: "findings" }, found.findings.map((one) => el("li", { class: "finding" }, mark(one.ok), el("span", {}, one.text)))),
      found.signed && [el("p", {}, "The signature must be the HMAC-SHA256, in lower-case hexadecimal digits, with the application's secret, of:"), el("pre", {}, found.signed)],
    );
    diagnosis.scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    fill(diagnosis);
    problem.textContent = error.message;
    problem.hidden = false;
  }
}

function pick(refusal) {
  form.elements.kind.value = refusal.what === "sign-in" ? "sign-in" : "subscription";
  if (refusal.app) form.elements.app.value = refusal.app;
  form.elements.socket_id.value = refusal.socket ?? "";
  form.elements.channel.value = refusal.channel ?? "";
  for (const name of ["auth", "channel_data", "user_data"]) form.elements[name].value = refusal.evidence?.[name] ?? "";
  fields();
  examine();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  examine();
});
form.elements.kind.addEventListener("input", fields);
fields();
await applications(form.elements.app, true);

let wanted = new URLSearchParams(location.search).get("at");
every(3000, async () => {
  const found = await get("refusals", { limit: 100 });
  rows(
    refusals,
    found.refusals.map((one) => [
      clock(one.at), one.what, one.channel ?? "", { text: one.text, class: "console-wide" }, [one.socket, one.client, one.address].filter(Boolean).join(" · "),
      one.evidence?.auth ? el("button", { type: "button", class: "button", onclick: () => pick(one) }, "Examine") : "",
    ]),
    "Nothing has been refused since the workers started.",
    found.refusals.map((one) => `${one.at} ${one.socket ?? ""}`),
  );
  const picked = wanted && found.refusals.find((one) => String(one.at) === wanted);
  if (picked) {
    wanted = null;
    pick(picked);
  }
});
