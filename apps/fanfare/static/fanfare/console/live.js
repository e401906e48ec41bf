// The live data of a console page. The page carries a token for ten minutes and renews it in the admin.

const root = document.getElementById("console");
const state = document.getElementById("console-state");
const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const SILENCE_MS = 25_000; // a stream sends a line at least every 10 s
const STEADY_MS = 5_000; // a stream that lasted so long is replaced at once

let token = root.dataset.token;
export const rights = new Set(root.dataset.rights.split(" ").filter(Boolean));

/** A refusal of the worker or of the network. `status`: of HTTP; 0 if no worker answered. */
export class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Shows the state of the connection above the page: "live", "lost", "ended" or "problem". */
export function showState(name, text) {
  if (state.dataset.state === name && state.textContent === text) return;
  state.dataset.state = name;
  state.textContent = text;
}

async function renew() {
  const csrf = root.querySelector("input[name=csrfmiddlewaretoken]").value;
  const response = await fetch(root.dataset.renew, { method: "POST", headers: { "X-CSRFToken": csrf }, redirect: "manual" });
  if (!response.ok) throw new Problem("You are logged out, or no longer have access to the console. Reload the page.", 401);
  token = (await response.json()).token;
}

setInterval(() => renew().catch(() => {}), Number(root.dataset.renewS) * 1000);

function address(path, args) {
  const url = new URL(root.dataset.live + path, location.href);
  for (const [name, value] of Object.entries(args ?? {})) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

async function request(url, options, isRepeated = false) {
  let response;
  try {
    response = await fetch(url, {
      ...options,
      credentials: "omit",
      cache: "no-store",
      headers: { ...options.headers, Authorization: `Bearer ${token}` },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(`No worker answers at ${url.origin}. Is Fanfare running there? Browsers reach it at FANFARE_PUBLIC_URL.`, 0);
  }
  if (response.ok) return response;
  if (response.status === 401 && !isRepeated) {
    await renew();
    return request(url, options, true);
  }
  const answer = await response.json().catch(() => null);
  if (answer?.error) throw new Problem(answer.error, response.status);
  throw new Problem(
    response.status === 404
      ? `No Fanfare worker answers at ${url.origin}${url.pathname}. If the workers run beside this site, set FANFARE_PUBLIC_URL to their URL.`
      : `${url.pathname} was answered with ${response.status}.`,
    response.status,
  );
}

/** The JSON answer of an endpoint. Throws Problem. */
export async function get(path, args, { signal } = {}) {
  return (await request(address(path, args), { signal })).json();
}

/** As `get`, repeated until a worker answers. Throws a Problem that a repetition does not solve. */
export async function ask(path, args) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await get(path, args);
    } catch (error) {
      const isPassing = error instanceof Problem && isLoss(error);
      if (error instanceof Problem) showState(isPassing ? "lost" : "problem", isPassing ? `${error.message} Trying again…` : error.message);
      if (!isPassing) throw error;
    }
    await pause(attempt);
  }
}

/** Whether a repetition may succeed. */
const isLoss = (error) => !(error.status >= 400 && error.status < 500 && error.status !== 408);
const pause = (attempt) => new Promise((done) => setTimeout(done, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));

/** Sends a JSON object to an endpoint, and gives its JSON answer. Throws Problem. */
export async function post(path, body, { signal } = {}) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  return (await request(address(path), options)).json();
}

async function* lines(response, alive) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) if (part) yield JSON.parse(part);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * The values of a stream, as they come. It connects again by itself, so it ends only with `signal`, or with a Problem
 * that a repetition does not solve. What happens between two connections is missing: `onState` is called with "lost" or
 * "ended" at the end of one, and with "live" at the begin of the next; by default it shows the line above the page.
 */
export async function* stream(path, args, { signal, onState = showState } = {}) {
  let attempts = 0;
  while (!signal?.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal?.addEventListener("abort", stop);
    let silence = setTimeout(stop, SILENCE_MS);
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(stop, SILENCE_MS);
    };
    let why = "";
    let began = Infinity;
    try {
      const response = await request(address(path, args), { signal: attempt.signal });
      began = Date.now();
      state.dataset.worker = response.headers.get("X-Fanfare-Worker") ?? "";
      onState("live", "Live");
      for await (const value of lines(response, alive)) {
        if (value?.error && Object.keys(value).length === 1) throw new Problem(value.error, 500);
        yield value;
      }
    } catch (error) {
      if (signal?.aborted) return;
      if (!isLoss(error)) {
        onState("problem", error.message);
        throw error;
      }
      why = error instanceof Problem ? error.message : `The connection to the worker ${state.dataset.worker ?? ""} was lost.`;
    } finally {
      clearTimeout(silence);
      signal?.removeEventListener("abort", stop);
      attempt.abort();
    }
    if (signal?.aborted) return;
    // Without a reason, the worker ended the stream because it stops or the page's token expired.
    if (why) onState("lost", `${why} Trying again…`);
    else onState("ended", "The worker ended the connection. Connecting again…");
    if (Date.now() - began > STEADY_MS) attempts = 0;
    else await pause(attempts++);
  }
}

/** Calls `update` now and every `ms` while the page is visible; shows its failures above the page. */
export function every(ms, update) {
  let timer = 0;
  let isRunning = false;
  const run = async () => {
    clearTimeout(timer);
    if (isRunning) return;
    isRunning = true;
    try {
      await update();
      showState("live", "Live");
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      showState(error.status === 0 || error.status >= 500 ? "lost" : "problem", error.message);
    } finally {
      isRunning = false;
      if (!document.hidden) timer = setTimeout(run, ms);
    }
  };
  document.addEventListener("visibilitychange", () => document.hidden || run());
  run();
  return run;
}
