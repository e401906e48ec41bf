// Elements and numbers of the console's pages. Text from clients is only ever set as text, never as markup.

/** An element: `el("a", { href: "…", class: "…", onclick: f }, "text", child)`. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

/** Jobs by name, those for each partition of the log (16 on Redis) as one if they are in the same state: "webhook log
 * reader, 16 partitions". */
export function joined(jobs) {
  const groups = new Map();
  for (const job of jobs) {
    const key = JSON.stringify([job.name.replace(/, partition \d+$/, ""), job.state, job.error, job.where]);
    groups.set(key, [...(groups.get(key) ?? []), job]);
  }
  return [...groups].map(([key, [first, ...more]]) => {
    if (!more.length) return first;
    const sum = (name) => more.reduce((total, job) => total + job[name], first[name]);
    return { ...first, name: `${JSON.parse(key)[0]}, ${more.length + 1} partitions`, runs: sum("runs"), failures: sum("failures") };
  });
}

/** Replaces an element's children. */
export const fill = (element, ...children) => element.replaceChildren(...children.flat().filter((child) => child !== null && child !== false));

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const small = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

const fraction = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

/** 1,234 as "1,234"; 1.23 as "1.2"; 0.05 as "0.05": the axis of a chart with small values has different labels. */
export function number(value) {
  if (Number.isInteger(value) || Math.abs(value) >= 10) return whole.format(value);
  return (Math.abs(value) < 1 ? fraction : small).format(value);
}

/** 1,234 events as "1,234"; 1,234,567 as "1.2 M". */
export function short(value) {
  if (value >= 1e9) return `${small.format(value / 1e9)} G`;
  if (value >= 1e6) return `${small.format(value / 1e6)} M`;
  if (value >= 1e5) return `${small.format(value / 1e3)} k`;
  return number(value);
}

export function bytes(value) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000) return `${(value < 10 && unit !== "B" ? small : whole).format(value)} ${unit}`;
    value /= 1000;
  }
  return `${small.format(value)} TB`;
}

/** Seconds as "0.4 ms", "12 s", "3 min", "5 h", "2 d". */
export function duration(seconds) {
  if (seconds < 1) return `${number(seconds * 1000)} ms`;
  if (seconds < 120) return `${number(seconds)} s`;
  if (seconds < 7200) return `${number(seconds / 60)} min`;
  if (seconds < 172_800) return `${number(seconds / 3600)} h`;
  return `${number(seconds / 86_400)} d`;
}

/** The age of a Unix time in seconds. */
export const since = (time) => duration(Math.max(0, Date.now() / 1000 - time));

/** "1 worker", "2,000 workers". */
export const counted = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Shows values in a row, and replaces only the cells that have changed. `heads`: of the columns; a narrow page shows
 * them in the cells. */
function showRow(row, values, heads) {
  for (const [index, value] of values.entries()) {
    const isPlain = typeof value !== "object" || value instanceof Node || value === null;
    const { text, ...attributes } = isPlain ? { text: value } : value;
    const cell = el(index === 0 ? "th" : "td", { scope: index === 0 && "row", "data-head": heads[index].textContent, ...attributes }, text ?? "");
    const before = row.cells[index];
    if (!before) {
      row.append(cell);
      continue;
    }
    const opened = before.querySelectorAll("details");
    for (const [place, details] of cell.querySelectorAll("details").entries()) details.open = opened[place]?.open ?? false;
    if (before.isEqualNode(cell)) continue;
    const hadFocus = before.contains(document.activeElement);
    before.replaceWith(cell);
    if (hadFocus) cell.querySelector("a, button, summary")?.focus({ preventScroll: true });
  }
}

/**
 * Shows a table of `values`: for each row a list of cells (text, an element, or {text, class}). `keys`: of each row. A
 * row whose key is shown already stays in the page, with the focus, the selection and the opened details in it.
 */
export function rows(body, values, empty, keys = []) {
  const heads = body.parentElement.tHead.rows[0].cells;
  if (!values.length && empty) {
    fill(body, el("tr", { class: "console-empty" }, el("td", { colspan: heads.length }, empty)));
    return;
  }
  const before = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const shown = values.map((cells, index) => {
    const key = String(keys[index] ?? index);
    const row = before.get(key) ?? el("tr", { "data-key": key });
    before.delete(key);
    showRow(row, cells, heads);
    return row;
  });
  const kept = new Set(shown);
  for (const row of [...body.rows]) if (!kept.has(row)) row.remove();
  let next = body.firstElementChild;
  for (const row of shown) {
    if (row === next) next = row.nextElementSibling;
    else body.insertBefore(row, next);
  }
}
