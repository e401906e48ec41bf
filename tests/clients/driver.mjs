// Drives unmodified SDKs of npm from a test: commands come in as JSON lines on stdin, what happens goes out as JSON lines
// on stdout. An SDK's object has an id of the test's; the first command of an id makes it.
//
// In:   {"do": "connect" | "echo" | "backend", "id": "a", "host", "port", "application", "key", "secret", …}
//       {"do": an action of a module in sdks/, "id": "a", …}
// Out:  {"id", "what": "state" | "error" | "event" | …, …}

import { createInterface } from "node:readline";
import * as backend from "./sdks/backend.mjs";
import * as echo from "./sdks/echo.mjs";
import * as pusher from "./sdks/pusher.mjs";

const actions = { ...backend.actions, ...echo.actions, ...pusher.actions };
const makers = new Set(["connect", "echo", "backend"]);
const made = new Map();

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const { id, do: action, ...command } = JSON.parse(line);
  const tell = (what, fields) => process.stdout.write(`${JSON.stringify({ id, what, ...fields })}\n`);
  if (makers.has(action)) made.set(id, actions[action](command, tell));
  else actions[action](made.get(id), command, tell);
});
lines.on("close", () => process.exit(0)); // the test is gone
