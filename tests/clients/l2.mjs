// Unmodified pusher-js with a session of its own: TOKEN stands in its path and stays the same over all reconnects.
// Without TOKEN it is a client as any other, to compare with.

import { Pusher, follow, options } from "./subscriber.mjs";

const { KEY, TOKEN } = process.env;

follow(new Pusher(KEY, options(TOKEN ? { wsPath: `/s/${TOKEN}` } : {})));
