// What the pages about events share: the list of applications, times, an item of the tail.
import { el } from "./dom.js";
import { ask } from "./live.js";

/** Fills a select with the applications that the user may see. `isChosen`: select the first one. */
export async function applications(select, isChosen = false) {
  const { applications: found } = await ask("applications");
  for (const one of found) select.append(el("option", { value: one.id }, `${one.name || one.id} (${one.id})`));
  const wanted = new URLSearchParams(location.search).get("app");
  if (wanted && found.some((one) => one.id === wanted)) select.value = wanted;
  else if (isChosen && found.length) select.value = found[0].id;
  return found;
}

/** A Unix time as 12:34:56.789 in the browser's zone. */
export function clock(time) {
  const date = new Date(time * 1000);
  return `${date.toLocaleTimeString("en-GB")}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

export const milliseconds = (value) => (value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`);

/** Text that is JSON, indented. */
export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** Copies a text; where the page has no access to the clipboard, selects it for the user. */
export async function copy(button, value) {
  try {
    await navigator.clipboard.writeText(value);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Press Ctrl+C";
    const area = el("textarea", { class: "wide", readonly: true, "aria-label": "Text to copy" }, value);
    button.after(area);
    area.select();
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

/** Values of the form that are not empty. */
export function values(form) {
  const found = {};
  for (const [name, value] of new FormData(form)) {
    if (!value) continue;
    found[name] = name in found ? `${found[name]},${value}` : value;
  }
  return found;
}
