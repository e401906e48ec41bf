// The choice of an application, kept in the page's URL.
import { el, fill } from "./dom.js";
import { ask } from "./live.js";

export const parameters = new URLSearchParams(location.search);

/** Changes the page's URL, so that it can be reloaded and sent to a colleague. */
export function remember(values) {
  for (const [name, value] of Object.entries(values)) {
    if (value) parameters.set(name, value);
    else parameters.delete(name);
  }
  const query = parameters.toString();
  history.replaceState(null, "", query ? `?${query}` : location.pathname);
}

/** Fills a select with the applications that the user may see. `all`: the label of the choice of all of them. */
export async function choose(select, { all = "" } = {}) {
  const { applications } = await ask("applications");
  fill(
    select,
    all ? el("option", { value: "" }, all) : null,
    applications.map((one) => el("option", { value: one.id }, one.enabled ? one.name : `${one.name} (disabled)`)),
  );
  const wanted = parameters.get("app");
  if (applications.some((one) => one.id === wanted)) select.value = wanted;
  return new Map(applications.map((one) => [one.id, one.name]));
}
