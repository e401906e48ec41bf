// Laravel Echo with its Pusher connector. Names are Echo's own, without the prefixes that it adds.

import Echo from "laravel-echo";
import { Pusher, options, tellOfConnection } from "./pusher.mjs";

const kinds = {
  public: (echo, name) => echo.channel(name),
  private: (echo, name) => echo.private(name),
  encrypted: (echo, name) => echo.encryptedPrivate(name),
  presence: (echo, name) => echo.join(name),
};

function connect(command, tell) {
  const echo = new Echo({ broadcaster: command.broadcaster ?? "pusher", key: command.key, Pusher, ...options(command) });
  tellOfConnection(echo.connector.pusher, tell);
  echo.connector.pusher.user.bind_global((event, data) => tell("user", { event, data }));
  return echo;
}

// `listen` and `whisper`: names of events, as a page gives them to Echo.
function join(echo, { kind, name, listen = [], whisper = [] }, tell) {
  const channel = kinds[kind](echo, name);
  channel.subscribed(() => tell("subscribed", { name }));
  channel.error((error) => tell("refused", { name, error }));
  for (const event of listen) channel.listen(event, (data) => tell("heard", { name, event, data }));
  for (const event of whisper) channel.listenForWhisper(event, (data) => tell("whispered", { name, event, data }));
  if (kind !== "presence") return;
  channel.here((members) => tell("here", { name, members }));
  channel.joining((member) => tell("joining", { name, member }));
  channel.leaving((member) => tell("leaving", { name, member }));
}

export const actions = {
  echo: connect,
  join,
  whisper: (echo, { kind, name, event, data }) => kinds[kind](echo, name).whisper(event, data),
  echo_signin: (echo) => echo.connector.signin(),
  leave: (echo, { name }) => echo.leave(name),
  echo_disconnect: (echo) => echo.disconnect(),
};
