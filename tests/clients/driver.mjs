// Drives unmodified pusher-js from a test: commands come in as JSON lines on stdin, what happens goes out as JSON lines on stdout.
//
// In:   {"do": "connect", "id": "a", "host", "port", "key", "secret", "member": {…}?}    one client; ids are the test's
//       {"do": "subscribe" | "unsubscribe", "id", "channel"}
//       {"do": "bind", "id", "channel", "event"}                                       what a bound handler gets, metadata too
//       {"do": "trigger", "id", "channel", "event", "data"}                             a client event
//       {"do": "members", "id", "channel"}
//       {"do": "disconnect", "id"}
// Out:  {"id", "what": "state" | "error" | "event" | "bound" | "members", …}

import { createHmac } from "node:crypto";
import { createInterface } from "node:readline";
import pusher from "pusher-js";

const Pusher = pusher.Pusher ?? pusher.default ?? pusher;
const clients = new Map();

function tell(id, what, fields) {
  process.stdout.write(`${JSON.stringify({ id, what, ...fields })}\n`);
}

// What a backend's auth endpoint would do; the secret is the test's.
function authorizer(command) {
  return ({ channelName, socketId }, callback) => {
    let signed = `${socketId}:${channelName}`;
    const answer = {};
    if (channelName.startsWith("presence-")) {
      answer.channel_data = JSON.stringify(command.member);
      signed += `:${answer.channel_data}`;
    }
    const signature = createHmac("sha256", command.secret).update(signed).digest("hex");
    answer.auth = `${command.key}:${signature}`;
    callback(null, answer);
  };
}

function connect(command) {
  const client = new Pusher(command.key, {
    cluster: "self-hosted",
    wsHost: command.host,
    wsPort: command.port,
    forceTLS: false,
    enabledTransports: ["ws"],
    channelAuthorization: { customHandler: authorizer(command) },
  });
  clients.set(command.id, client);
  client.connection.bind("state_change", ({ current }) => {
    tell(command.id, "state", { state: current, socket_id: client.connection.socket_id ?? null });
  });
  client.connection.bind("error", (error) => {
    tell(command.id, "error", { data: error?.data ?? error?.error?.data ?? String(error?.error ?? error) });
  });
  client.bind_global((event, data) => tell(command.id, "event", { channel: null, event, data }));
}

function subscribe(client, command) {
  const channel = client.subscribe(command.channel);
  channel.bind_global((event, data) => {
    const plain = data?.members ? { members: data.members, count: data.count, me: data.me } : data;
    tell(command.id, "event", { channel: command.channel, event, data: plain });
  });
}

const actions = {
  connect: (_client, command) => connect(command),
  subscribe,
  unsubscribe: (client, command) => client.unsubscribe(command.channel),
  bind: (client, command) => {
    const { id, channel, event } = command;
    client.channel(channel).bind(event, (data, metadata) => tell(id, "bound", { channel, event, data, metadata }));
  },
  trigger: (client, command) => client.channel(command.channel).trigger(command.event, command.data),
  members: (client, command) => {
    const { members, count } = client.channel(command.channel).members;
    tell(command.id, "members", { channel: command.channel, members, count });
  },
  disconnect: (client, command) => {
    client.disconnect();
    clients.delete(command.id);
  },
};

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const command = JSON.parse(line);
  actions[command.do](clients.get(command.id), command);
});
lines.on("close", () => process.exit(0)); // the test is gone
