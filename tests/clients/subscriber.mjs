// What plain.mjs and plugin.mjs share: one channel, and a line of JSON for everything that happens on it.
//
// Environment: HOST, PORT, KEY, CHANNEL, and AUTH, the secret, where the channel is not public.
// Lines: {"state", "socket_id"}, {"subscribed": channel}, {"stream"} as the server tells it then, {"n"} for every event
// that counts, {"refused"}, {"resume_failed"}. The process ends only when it is ended.

import { createHmac } from "node:crypto";
import pusher from "pusher-js";

export const Pusher = pusher.Pusher ?? pusher.default ?? pusher;

const { HOST, PORT, KEY, CHANNEL, AUTH } = process.env;

export function tell(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

// What a backend's auth endpoint would do.
function authorize({ channelName, socketId }, callback) {
  const answer = {};
  let signed = `${socketId}:${channelName}`;
  if (channelName.startsWith("presence-")) {
    answer.channel_data = JSON.stringify({ user_id: String(process.pid) });
    signed += `:${answer.channel_data}`;
  }
  answer.auth = `${KEY}:${createHmac("sha256", AUTH).update(signed).digest("hex")}`;
  callback(null, answer);
}

export function options(more) {
  return {
    cluster: "",
    wsHost: HOST,
    wsPort: Number(PORT),
    forceTLS: false,
    enabledTransports: ["ws"],
    channelAuthorization: { customHandler: authorize },
    ...more,
  };
}

/** `client`: a Pusher object. Subscribes it to CHANNEL, and tells. */
export function follow(client, subscribe = (name) => client.subscribe(name)) {
  client.connection.bind("state_change", ({ current }) => {
    tell({ state: current, socket_id: client.connection.socket_id ?? null });
  });
  subscribe(CHANNEL);
  const channel = client.channel(CHANNEL);
  channel.bind_global((_event, data) => {
    if (Number.isInteger(data?.n)) tell({ n: data.n });
  });
  channel.bind("pusher:subscription_succeeded", (data) => {
    tell({ subscribed: CHANNEL });
    if (data?.stream) tell({ stream: data.stream });
  });
  channel.bind("pusher:stream", (stream) => tell({ stream })); // presence channels
  channel.bind("pusher:subscription_error", (refused) => tell({ refused }));
  channel.bind("pusher:resume_failed", (resume_failed) => tell({ resume_failed }));
  setInterval(() => {}, 2 ** 30); // there is always something to wait for
}
