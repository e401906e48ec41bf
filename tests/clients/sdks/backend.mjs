// The vendor's SDK for backends in Node: npm's `pusher`. It also answers for the backend that pusher-js and Echo ask.

import Backend from "pusher";

export function backendOf({ host, port, application, key, secret, master_key: masterKey }) {
  return new Backend({
    appId: application,
    key,
    secret,
    host,
    port,
    useTLS: false,
    ...(masterKey && { encryptionMasterKeyBase64: masterKey }),
  });
}

// `member`: the channel_data on presence channels; without one the signed-in user is the member. `token`: a capability
// token that is sent in place of a signature.
export function authorizer(command) {
  const backend = backendOf(command);
  return ({ channelName, socketId }, callback) => {
    const member = channelName.startsWith("presence-") ? command.member : undefined;
    if (command.token) {
      callback(null, { auth: command.token, ...(member && { channel_data: JSON.stringify(member) }) });
      return;
    }
    callback(null, backend.authorizeChannel(socketId, channelName, member));
  };
}

export function authenticator(command) {
  const backend = backendOf(command);
  return ({ socketId }, callback) => callback(null, backend.authenticateUser(socketId, command.user));
}

// A result as JSON for the test: the status and body of a response, or the SDK's verdict and events of a webhook.
async function plain(result) {
  if (typeof result?.isValid === "function") return { valid: result.isValid(), events: result.getEvents() };
  if (typeof result?.json === "function") return { status: result.status, body: await result.json() };
  return result;
}

export const actions = {
  backend: backendOf,
  // {"call": a method of the SDK, "with": its arguments}
  call: async (backend, command, tell) => {
    try {
      tell("answer", { answer: await plain(await backend[command.call](...command.with)) });
    } catch (error) {
      tell("refused", { status: error.status ?? null, message: error.message, body: error.body ?? null });
    }
  },
};
