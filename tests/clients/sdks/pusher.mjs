// pusher-js. Environment: PLUGIN=1, with the plugin.

import pusher from "pusher-js";
import { install } from "../../../apps/fanfare/static/fanfare/resume.mjs";
import { authenticator, authorizer } from "./backend.mjs";

export const Pusher = pusher.Pusher ?? pusher.default ?? pusher;
if (process.env.PLUGIN) install(Pusher, { jitter: 100 });

export function options(command) {
  return {
    cluster: "self-hosted",
    wsHost: command.host,
    wsPort: command.port,
    forceTLS: false,
    enabledTransports: ["ws"],
    channelAuthorization: { customHandler: authorizer(command) },
    userAuthentication: { customHandler: authenticator(command) },
  };
}

export function tellOfConnection(client, tell) {
  client.connection.bind("state_change", ({ current }) => {
    tell("state", { state: current, socket_id: client.connection.socket_id ?? null });
  });
  client.connection.bind("error", (error) => {
    tell("error", { data: error?.data ?? error?.error?.data ?? String(error?.error ?? error) });
  });
}

function connect(command, tell) {
  const client = new Pusher(command.key, options(command));
  tellOfConnection(client, tell);
  client.bind_global((event, data) => tell("event", { channel: null, event, data }));
  client.user.bind_global((event, data) => tell("user", { event, data }));
  client.user.watchlist.bind_global((event, data) => tell("watchlist", { event, user_ids: data.user_ids }));
  return client;
}

function subscribe(client, command, tell) {
  const channel = client.subscribe(command.channel);
  channel.bind_global((event, data) => {
    const found = data?.members ? { members: data.members, count: data.count, me: data.me } : data;
    tell("event", { channel: command.channel, event, data: found });
  });
}

export const actions = {
  connect,
  subscribe,
  subscribe_only: (client, command) => client.subscribe(command.channel), // binds nothing on the channel
  unsubscribe: (client, command) => client.unsubscribe(command.channel),
  bind: (client, { channel, event }, tell) => {
    client.channel(channel).bind(event, (data, metadata) => tell("bound", { channel, event, data, metadata }));
  },
  revisions: (client, { channel, event }, tell) => {
    client.channel(channel).revisions(event, (data, revision) => tell("revision", { channel, event, data, revision }));
  },
  trigger: (client, command) => client.channel(command.channel).trigger(command.event, command.data),
  signin: (client) => client.signin(),
  members: (client, { channel }, tell) => {
    const { members, count } = client.channel(channel).members;
    tell("members", { channel, members, count });
  },
  disconnect: (client) => client.disconnect(),
};
