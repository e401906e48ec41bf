// Unmodified pusher-js with the plugin, ECHO=1: under Laravel Echo. JITTER: the plugin's, in ms.
// More lines: {"reset": channel, "reason"}.

import Echo from "laravel-echo";
import { install } from "../../apps/fanfare/static/fanfare/resume.mjs";
import { Pusher, follow, options, tell } from "./subscriber.mjs";

const { KEY, ECHO, JITTER } = process.env;

install(Pusher, { jitter: Number(JITTER ?? 2000), onReset: (reset, reason) => tell({ reset, reason }) });
if (ECHO) {
  const echo = new Echo({ broadcaster: "pusher", key: KEY, Pusher, ...options() });
  const kinds = [
    ["presence-", (name) => echo.join(name)],
    ["private-encrypted-", (name) => echo.encryptedPrivate(name)],
    ["private-", (name) => echo.private(name)],
    ["", (name) => echo.channel(name)],
  ];
  follow(echo.connector.pusher, (name) => {
    const [prefix, open] = kinds.find(([start]) => name.startsWith(start));
    open(name.slice(prefix.length));
  });
} else {
  follow(new Pusher(KEY, options()));
}
