// Unmodified pusher-js. TOKEN: a resume token, which stays in its path over all reconnects. SNIPPET: code of the
// documentation, which finds the client as `pusher`.

import { Pusher, follow, options } from "./subscriber.mjs";

const { KEY, SNIPPET, TOKEN } = process.env;

const pusher = new Pusher(KEY, options(TOKEN ? { wsPath: `/s/${TOKEN}` } : {}));
if (SNIPPET) new Function("pusher", SNIPPET)(pusher);
follow(pusher);
