// The plugin, one behaviour after the other: real pusher-js, over WebSockets whose server is the test. `node --test`.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import FanfareResume, { install } from "../../apps/fanfare/static/fanfare/resume.mjs";
import { Pusher } from "./subscriber.mjs";

let opened; // all the WebSockets of this test
let clients;
let handle;
let resets;
let hosts = 0;
let away; // connections are refused
let silent; // connections are not answered

class PlayedSocket {
  readyState = 0;
  sent = [];

  constructor(url) {
    this.url = url;
    this.openedAt = performance.now();
    opened.push(this);
    this.socketId = `${opened.length}.1`;
    if (silent) return;
    if (away) {
      setTimeout(() => this.onerror?.({ type: "error" }));
      this.lose(1006);
      return;
    }
    setTimeout(() => {
      if (this.readyState !== 0) return;
      this.readyState = 1;
      this.onopen?.({});
      this.gets("pusher:connection_established", { socket_id: this.socketId, activity_timeout: 120 });
    });
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.lose(1000);
  }

  gets(event, data, channel, fields = {}) {
    this.onmessage?.({ data: JSON.stringify({ event, channel, data: JSON.stringify(data), ...fields }) });
  }

  event(offset, fields) {
    this.gets("counted", { n: offset }, "orders", { offset, ...fields });
  }

  takes(stream, channel = "orders") {
    this.gets("pusher_internal:subscription_succeeded", { stream }, channel);
  }

  lose(code = 4200) {
    if (this.readyState === 3) return;
    this.readyState = 3;
    setTimeout(() => this.onclose?.({ code, reason: "", wasClean: false }));
  }

  subscribes(channel = "orders") {
    return this.sent.filter((frame) => frame.event === "pusher:subscribe" && frame.data.channel === channel);
  }
}

async function until(condition) {
  for (let tries = 0; tries < 1000; tries += 1) {
    const found = condition();
    if (found) return found;
    await sleep(5);
  }
  throw new assert.AssertionError({ message: `in 5 s it was never so: ${condition}` });
}

function start(options) {
  handle = install(Pusher, { jitter: 0, retry: false, onReset: (...reset) => resets.push(reset), ...options });
}

function client(host = `host-${(hosts += 1)}`, more = {}) {
  const options = { cluster: "", wsHost: host, wsPort: 80, forceTLS: false, enabledTransports: ["ws"], ...more };
  const made = new Pusher("key", options);
  clients.push(made);
  return made;
}

/** A subscription, the numbers that its handler gets, and the WebSocket that it is on. */
async function following(made, stream = { epoch: "a", offset: 0, replayed: 0 }) {
  const numbers = [];
  made.subscribe("orders").bind("counted", ({ n }) => numbers.push(n));
  const socket = await subscribed();
  socket.takes(stream);
  return { numbers, socket };
}

/** The newest WebSocket, once it asked for the channel. */
function subscribed(count = opened.length) {
  return until(() => opened.length >= count && opened.at(-1)?.subscribes().length && opened.at(-1));
}

function again() {
  return subscribed(opened.length + 1);
}

beforeEach(() => {
  [opened, clients, resets, away, silent] = [[], [], [], false, false];
  Pusher.Runtime.getWebSocketAPI = () => PlayedSocket;
});

afterEach(async () => {
  await sleep(10); // disconnect() does not stop a retry that pusher-js has begun at a close with 4200: let it begin
  for (const made of clients) made.disconnect();
  handle?.uninstall();
  handle = null;
});

test("asks every server for positions, and names none at first", async () => {
  start();
  const { socket } = await following(client());
  assert.match(socket.url, /\?protocol=7&.*&rt=1$/);
  assert.deepEqual(socket.subscribes()[0].data, { auth: "", channel: "orders" });
});

test("the first subscription starts at a position of the page, and only that one", async () => {
  start({ since: { orders: { epoch: "a", offset: 4 } } });
  const pusher = client();
  const stream = { epoch: "a", offset: 6, was_recovering: true, recovered: true, replayed: 2 };
  const { numbers, socket } = await following(pusher, stream);
  assert.deepEqual(socket.subscribes()[0].data.resume, { epoch: "a", offset: 4 });
  for (const offset of [4, 5, 6, 7]) socket.event(offset);
  assert.deepEqual(numbers, [5, 6, 7]);
  pusher.unsubscribe("orders");
  pusher.subscribe("orders");
  await until(() => socket.subscribes().length === 2);
  assert.equal(socket.subscribes()[1].data.resume, undefined);
});

test("events that came before are dropped, events without an offset are not", async () => {
  start();
  const { numbers, socket } = await following(client(), { epoch: "a", offset: 4, replayed: 0 });
  for (const offset of [4, 5, 5, 3, 6]) socket.event(offset);
  socket.gets("counted", { n: 0 }, "orders");
  assert.deepEqual(numbers, [5, 6, 0]);
  assert.deepEqual(handle.positions(), { orders: { epoch: "a", offset: 6 } });
});

test("a reconnect sends the position and the connection on which it was reached", async () => {
  start();
  const { numbers, socket } = await following(client());
  socket.event(1);
  const coming = again();
  socket.lose();
  const second = await coming;
  assert.deepEqual(second.subscribes()[0].data.resume, { epoch: "a", offset: 1, socket_id: "1.1" });
  second.takes({ epoch: "a", offset: 4, was_recovering: true, recovered: true, replayed: 3 });
  second.event(2, { replay: true });
  const third = again();
  second.lose(); // in the middle of the replay
  assert.deepEqual((await third).subscribes()[0].data.resume, { epoch: "a", offset: 2, socket_id: "2.1" });
  opened.at(-1).takes({ epoch: "a", offset: 4, was_recovering: true, recovered: true, replayed: 2 });
  for (const offset of [3, 4, 5]) opened.at(-1).event(offset);
  assert.deepEqual(numbers, [1, 2, 3, 4, 5]);
  assert.deepEqual(resets, []);
});

test("a recovery that never began leaves the position", async () => {
  start();
  const { socket } = await following(client());
  socket.event(1);
  const second = again();
  socket.lose();
  (await second).takes({ epoch: "a", offset: 2, was_recovering: true, recovered: true, replayed: 1 });
  const third = again();
  opened.at(-1).lose();
  assert.deepEqual((await third).subscribes()[0].data.resume, { epoch: "a", offset: 1, socket_id: "1.1" });
});

test("a failed resume calls onReset, and offsets start again", async () => {
  start();
  const { numbers, socket } = await following(client(), { epoch: "a", offset: 90, replayed: 0 });
  const second = again();
  socket.lose();
  const stream = { epoch: "b", offset: 2, was_recovering: true, recovered: false, replayed: 0 };
  (await second).takes({ ...stream, reason: "epoch_changed" });
  opened.at(-1).event(3);
  assert.deepEqual(resets, [["orders", "epoch_changed"]]);
  assert.deepEqual(numbers, [3]);
});

test("a channel whose history was switched off calls onReset, and all its events come", async () => {
  start();
  const { numbers, socket } = await following(client(), { epoch: "a", offset: 90, replayed: 0 });
  const second = again();
  socket.lose();
  (await second).takes(undefined);
  opened.at(-1).event(1);
  assert.deepEqual(resets, [["orders", "not_enabled"]]);
  assert.deepEqual(numbers, [1]);
  assert.deepEqual(handle.positions(), {});
});

test("a reset of the stream calls onReset and the channel's handlers", async () => {
  start();
  const made = client();
  const { numbers, socket } = await following(made, { epoch: "a", offset: 90, replayed: 0 });
  const seen = [];
  made.channel("orders").bind("pusher:stream_reset", ({ reason }) => seen.push(reason));
  socket.gets("pusher:stream_reset", { epoch: "b", offset: 5, reason: "gap" }, "orders");
  for (const offset of [5, 6]) socket.event(offset);
  assert.deepEqual(resets, [["orders", "gap"]]);
  assert.deepEqual(seen, ["gap"]);
  assert.deepEqual(numbers, [6]);
});

test("onReset is called although a handler of the page throws", async () => {
  start();
  const made = client();
  const { socket } = await following(made);
  made.channel("orders").bind("pusher:stream_reset", () => {
    throw new Error("the page's own");
  });
  assert.throws(() => socket.gets("pusher:stream_reset", { epoch: "b", offset: 5, reason: "gap" }, "orders"), /own/);
  assert.deepEqual(resets, [["orders", "gap"]]);
});

test("a presence channel gets its position in a frame of its own", async () => {
  start();
  const handler = (_params, callback) => callback(null, { auth: "key:s", channel_data: '{"user_id":"ann"}' });
  const made = client();
  made.config.channelAuthorizer = handler;
  const numbers = [];
  made.subscribe("presence-room").bind("counted", ({ n }) => numbers.push(n));
  const socket = await until(() => opened[0]?.subscribes("presence-room").length && opened[0]);
  const stream = { epoch: "a", offset: 3, replayed: 0 };
  const presence = { ids: ["ann"], hash: { ann: null }, count: 1 };
  socket.gets("pusher_internal:subscription_succeeded", { presence, stream }, "presence-room");
  socket.gets("counted", { n: 4 }, "presence-room", { offset: 4 });
  socket.gets("pusher:stream", stream, "presence-room");
  socket.gets("counted", { n: 4 }, "presence-room", { offset: 4 });
  assert.deepEqual(numbers, [4]);
});

test("a rewind is asked for at the first subscribe only", async () => {
  start({ rewind: (channel) => (channel === "orders" ? { count: 3 } : null) });
  const { numbers, socket } = await following(client(), { epoch: "a", offset: 9, replayed: 3 });
  assert.deepEqual(socket.subscribes()[0].data.rewind, { count: 3 });
  for (const offset of [5, 7, 9, 10]) socket.event(offset, { replay: offset < 10 }); // 6 and 8: the client's own
  assert.deepEqual(numbers, [5, 7, 9, 10]);
  const second = again();
  socket.lose();
  assert.equal((await second).subscribes()[0].data.rewind, undefined);
});

test("a subscribe after an unsubscribe sends no position", async () => {
  start();
  const made = client();
  const { socket } = await following(made);
  socket.event(1);
  made.unsubscribe("orders");
  await until(() => !handle.positions().orders);
  made.subscribe("orders");
  await until(() => socket.subscribes().length === 2);
  assert.equal(socket.subscribes()[1].data.resume, undefined);
});

test("a subscribe after an unsubscribe without a connection sends no position", async () => {
  start({ jitter: 100 });
  const made = client();
  const { socket } = await following(made);
  socket.event(1);
  const second = again();
  const connecting = new Promise((resolve) => made.connection.bind("connecting", resolve));
  socket.lose();
  await connecting;
  made.unsubscribe("orders");
  made.subscribe("orders");
  assert.equal((await second).subscribes()[0].data.resume, undefined);
});

test("events that come after the end of a connection are not counted as delivered", async () => {
  start();
  const made = client();
  const { numbers, socket } = await following(made);
  socket.event(1);
  made.disconnect();
  socket.event(2);
  assert.deepEqual(numbers, [1]);
  assert.equal(handle.positions().orders.offset, 1);
});

test("two clients of one address have separate positions", async () => {
  start();
  const [one, other] = [client("same"), client("same")];
  const numbers = [];
  for (const made of [one, other]) made.subscribe("orders").bind("counted", ({ n }) => numbers.push(n));
  await until(() => opened.length === 2 && opened.every((socket) => socket.subscribes().length));
  for (const socket of opened) socket.takes({ epoch: "a", offset: 0, replayed: 0 });
  for (const socket of opened) socket.event(1);
  assert.deepEqual(numbers, [1, 1]);
  opened[0].event(2);
  assert.equal(handle.positions(one).orders.offset + handle.positions(other).orders.offset, 3);
  for (const socket of [...opened]) socket.lose();
  await until(() => opened.length === 4 && opened.slice(2).every((socket) => socket.subscribes().length));
  const resumed = opened.slice(2).map((socket) => socket.subscribes()[0].data.resume);
  assert.deepEqual(resumed.map(({ offset, socket_id: id }) => `${offset} on ${id}`).sort(), ["1 on 2.1", "2 on 1.1"]);
});

test("a subscription that the server could not take is asked for again", async () => {
  start();
  const made = client();
  const { socket } = await following(made);
  socket.event(1);
  const second = again();
  socket.lose();
  const refusal = { type: "EngineUnavailable", error: "not now", status: 503 };
  (await second).gets("pusher:subscription_error", refusal, "orders");
  const asked = await until(() => opened.at(-1).subscribes()[1]);
  assert.deepEqual(asked, opened.at(-1).subscribes()[0]);
  opened.at(-1).takes({ epoch: "a", offset: 1, was_recovering: true, recovered: true, replayed: 0 });
  assert.equal(made.channel("orders").subscribed, true);
});

test("a subscription that is not allowed is not asked for again", async () => {
  start();
  client().subscribe("orders");
  const socket = await subscribed();
  socket.gets("pusher:subscription_error", { type: "AuthError", error: "no", status: 403 }, "orders");
  await sleep(1100);
  assert.equal(socket.subscribes().length, 1);
});

test("an auth request that is not answered is repeated, for the present connection only", async (context) => {
  context.mock.method(Math, "random", () => 0);
  const warned = context.mock.method(console, "warn", () => {});
  start({ retry: { min: 0, max: 0 } });
  const answers = [];
  const channelAuthorization = { customHandler: (params, callback) => answers.push({ params, callback }) };
  const made = client(undefined, { channelAuthorization });
  const refused = [];
  const channel = made.subscribe("private-orders");
  channel.bind("pusher:subscription_error", (error) => refused.push(error));
  for (const [index, failure] of [{ status: 0 }, { status: 502 }].entries()) {
    await until(() => answers.length === index + 1);
    answers[index].callback(Object.assign(new Error("no answer"), failure), null);
  }
  assert.equal(warned.mock.callCount(), 1);
  const lost = await until(() => answers[2]);
  opened.at(-1).lose();
  await until(() => answers.length === 4);
  lost.callback(null, { auth: "key:of the lost connection" });
  lost.callback(Object.assign(new Error("no answer"), { status: 503 }), null);
  answers[3].callback(null, { auth: "key:signature" });
  const socket = await until(() => opened.at(-1).subscribes("private-orders").length && opened.at(-1));
  assert.equal(answers[3].params.socketId, socket.socketId);
  assert.deepEqual(socket.subscribes("private-orders").map(({ data }) => data.auth), ["key:signature"]);
  assert.deepEqual(refused, []);
});

test("the snippet of the how-to repeats an auth request in plain pusher-js", async (context) => {
  const guide = readFileSync(new URL("../../docs/how-to/resume.md", import.meta.url), "utf8");
  const [snippet] = guide.match(/^channel\.bind\("pusher:subscription_error"[^]*?^\}\);$/m);
  let asked = 0;
  context.mock.method(Pusher.Runtime, "createXHR", () => ({
    readyState: 4,
    responseText: '{"auth": "key:signature"}',
    open() {},
    setRequestHeader() {},
    send() {
      asked += 1;
      this.status = asked === 1 ? 502 : 200;
      setTimeout(() => this.onreadystatechange());
    },
  }));
  const pusher = client();
  new Function("channel", "pusher", snippet)(pusher.subscribe("private-orders"), pusher);
  await until(() => opened.at(-1)?.subscribes("private-orders").length);
  assert.equal(asked, 2);
});

test("an auth request that is refused is not repeated", async () => {
  start({ retry: { min: 0, max: 0 } });
  let asked = 0;
  const customHandler = (_, callback) => {
    asked += 1;
    callback(Object.assign(new Error("no"), { status: 403 }), null);
  };
  const channel = client(undefined, { channelAuthorization: { customHandler } }).subscribe("private-orders");
  const refused = await new Promise((resolve) => channel.bind("pusher:subscription_error", resolve));
  assert.equal(refused.error, "no");
  await sleep(600);
  assert.equal(asked, 1);
});

test("a reconnect waits for its jitter, the first connection does not", async (context) => {
  context.mock.method(Math, "random", () => 0.5);
  start({ jitter: 2_000 });
  const begun = performance.now();
  const { socket } = await following(client());
  assert.ok(socket.openedAt - begun < 900);
  const lost = performance.now();
  const second = again();
  socket.lose();
  const waited = (await second).openedAt - lost;
  assert.ok(waited >= 999 && waited < 1_900, `${waited} ms`);
});

test("a first connection does not wait because one to another server is lost", async (context) => {
  context.mock.method(Math, "random", () => 1);
  start({ jitter: 60_000 });
  const made = client();
  const { socket } = await following(made);
  socket.lose();
  await until(() => made.connection.state === "connecting");
  const other = client();
  await until(() => other.connection.state === "connected");
});

test("the next WebSocket waits for the rest of the pause when pusher-js gives one up", async (context) => {
  context.mock.method(Math, "random", () => 0.5);
  start({ jitter: 2_000 });
  const made = client();
  const { socket } = await following(made);
  const lost = performance.now();
  socket.lose();
  await until(() => made.connection.state === "connecting");
  await sleep(600);
  const early = Pusher.Runtime.createWebSocket(socket.url.replace("&rt=1", ""));
  assert.equal(early.readyState, 0);
  const closed = new Promise((resolve) => (early.onclose = resolve));
  early.close();
  assert.deepEqual([(await closed).code, early.readyState], [1006, 3]);
  const later = Pusher.Runtime.createWebSocket(early.url);
  await until(() => later.readyState === 1 && made.connection.state === "connected");
  assert.equal(opened.length, 3); // never the early one
  for (const { openedAt } of opened.slice(1)) {
    assert.ok(openedAt - lost >= 999 && openedAt - lost < 1_590, `${openedAt - lost} ms`);
  }
  later.close();
});

test("a connect after a disconnect does not wait", async (context) => {
  context.mock.method(Math, "random", () => 1);
  start({ jitter: 60_000 });
  const made = client();
  const { socket } = await following(made);
  socket.event(1);
  made.disconnect();
  const second = again();
  made.connect();
  assert.deepEqual((await second).subscribes()[0].data.resume, { epoch: "a", offset: 1, socket_id: "1.1" });
});

test("a server that is away is tried again until it is back, and pusher-js sees one connection attempt", async () => {
  start({ retry: { min: 20, max: 40 } });
  const made = client();
  const { socket } = await following(made);
  socket.event(1);
  const states = [];
  made.connection.bind("state_change", ({ current }) => states.push(current));
  away = true;
  socket.lose();
  await until(() => opened.length >= 6);
  away = false;
  const back = await subscribed(opened.length);
  assert.deepEqual(back.subscribes()[0].data.resume, { epoch: "a", offset: 1, socket_id: "1.1" });
  assert.deepEqual(states, ["connecting", "connected"]);
  const pauses = opened.slice(2).map(({ openedAt }, number) => openedAt - opened[number + 1].openedAt);
  assert.ok(pauses.every((pause) => pause >= 19 && pause < 300), `${pauses}`);
});

test("a first connection to a server that is away is tried again too", async () => {
  start({ retry: { min: 20, max: 40 } });
  away = true;
  const made = client();
  made.subscribe("orders");
  await until(() => opened.length >= 3);
  away = false;
  await subscribed();
  assert.equal(made.connection.state, "connected");
});

test("an attempt that the network drops is replaced after 4 s", async () => {
  start({ retry: { min: 20, max: 40 } });
  silent = true;
  const made = client();
  made.subscribe("orders");
  await until(() => opened.length === 1);
  silent = false;
  await sleep(3_900);
  assert.equal(opened.length, 1);
  await subscribed(2);
  assert.equal(opened[0].readyState, 3);
});

test("TLS on a port without TLS is not tried again", async () => {
  start({ retry: { min: 20, max: 40 } });
  away = true;
  const made = new Pusher("key", { cluster: "", wsHost: "plain", wsPort: 80, forceTLS: false });
  clients.push(made);
  await sleep(2_600); // pusher-js tries TLS after 2 s
  const secure = opened.filter(({ url }) => url.startsWith("wss:"));
  assert.equal(secure.length, 1);
  assert.ok(opened.length > 20, `${opened.length}`);
});

test("no attempt follows a disconnect", async () => {
  start({ retry: { min: 20, max: 40 } });
  away = true;
  const made = client();
  await until(() => opened.length === 2);
  made.disconnect();
  await sleep(100);
  assert.equal(opened.length, 2);
  away = false;
  made.connect();
  await until(() => made.connection.state === "connected");
});

test("without recovery nothing changes but the reconnects", async () => {
  start({ recover: false, retry: { min: 20, max: 40 } });
  const made = client();
  const numbers = [];
  made.subscribe("orders").bind("counted", ({ n }) => numbers.push(n));
  const socket = await subscribed();
  assert.doesNotMatch(socket.url, /rt=1/);
  socket.takes(undefined);
  for (const offset of [1, 1]) socket.event(offset);
  assert.deepEqual(numbers, [1, 1]);
  away = true;
  socket.lose();
  await until(() => opened.length >= 3);
  away = false;
  assert.deepEqual((await subscribed()).subscribes()[0].data, { auth: "", channel: "orders" });
});

test("history comes page by page", async () => {
  start();
  const made = client();
  const { socket } = await following(made);
  const page = handle.history(made, "orders", { limit: 2 });
  const asked = await until(() => socket.sent.find(({ event }) => event === "pusher:history"));
  const { rid, ...rest } = asked.data;
  assert.deepEqual(rest, { channel: "orders", before: null, limit: 2 });
  const items = ['{"n":9}', "no JSON"].map((data, back) => ({ offset: 9 - back, event: "counted", data }));
  socket.gets("pusher:history", { rid, items, next: { epoch: "a", offset: 8 } }, "orders");
  const { items: read, next } = await page;
  assert.deepEqual(read.map(({ offset, data }) => [offset, data]), [[9, { n: 9 }], [8, "no JSON"]]);
  assert.deepEqual(next, { epoch: "a", offset: 8 });
});

test("history that is refused, or whose connection is lost, or has none, is an error", async () => {
  start();
  const made = client();
  await assert.rejects(handle.history(made, "orders"), /no connection/);
  const { socket } = await following(made);
  const refused = handle.history(made, "orders");
  const { rid } = socket.sent.at(-1).data;
  socket.gets("pusher:history", { rid, error: { message: "not subscribed" } }, "orders");
  await assert.rejects(refused, /not subscribed/);
  const cut = handle.history(made, "orders");
  socket.lose();
  await assert.rejects(cut, /connection was lost/);
});

test("a storage keeps the positions for the next page", async () => {
  const items = new Map();
  const storage = { getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value) };
  start({ storage });
  const made = client("stored");
  const { socket } = await following(made);
  socket.event(1);
  made.disconnect();
  await until(() => items.size);
  handle.uninstall();
  start({ storage });
  const second = again();
  client("stored").subscribe("orders");
  assert.deepEqual((await second).subscribes()[0].data.resume, { epoch: "a", offset: 1, socket_id: "1.1" });
});

test("revisions hands over new versions and deletions of one event, and unbinds", async () => {
  start();
  const made = client();
  const { socket } = await following(made);
  const seen = [];
  const unbind = made.channel("orders").revisions("message", (data, revision) => seen.push([data, revision]));
  const at = "2026-01-01T00:00:00.000Z";
  socket.gets("fanfare:revised", { id: "a:1", event: "message", data: '{"n":2}', by: "7", at }, "orders");
  socket.gets("fanfare:revised", { id: "a:2", event: "another", data: "{}", by: "7", at }, "orders");
  socket.gets("fanfare:deleted", { id: "a:1", event: "message", by: null, at }, "orders");
  unbind();
  socket.gets("fanfare:deleted", { id: "a:3", event: "message", by: null, at }, "orders");
  assert.deepEqual(seen, [
    [{ n: 2 }, { id: "a:1", by: "7", at }],
    [null, { id: "a:1", by: null, at }],
  ]);
});

test("an updated member is in the members of the channel before the page's handler runs", async () => {
  start();
  const made = client();
  made.config.channelAuthorizer = (_params, callback) => callback(null, { auth: "key:s", channel_data: '{"user_id":"ann"}' });
  const room = made.subscribe("presence-room");
  const socket = await until(() => opened[0]?.subscribes("presence-room").length && opened[0]);
  const presence = { ids: ["ann"], hash: { ann: { name: "Ann" } }, count: 1 };
  socket.gets("pusher_internal:subscription_succeeded", { presence }, "presence-room");
  const seen = [];
  room.bind("fanfare:member_updated", ({ user_id }) => seen.push(room.members.get(user_id)?.info));
  socket.gets("fanfare:member_updated", { user_id: "ann", user_info: { name: "Ann", typing: true } }, "presence-room");
  socket.gets("fanfare:member_updated", { user_id: "unknown", user_info: {} }, "presence-room");
  assert.deepEqual(seen.slice(0, 1), [{ name: "Ann", typing: true }]);
  assert.equal(room.members.count, 1);
});

test("after uninstall pusher-js is unchanged", async () => {
  const before = Pusher.Runtime.createWebSocket;
  const made = client();
  const { channelAuthorizer, userAuthenticator } = made.config;
  start({ retry: { min: 0, max: 0 } });
  made.disconnect();
  made.connect();
  assert.notEqual(Pusher.Runtime.createWebSocket, before);
  assert.notEqual(made.config.channelAuthorizer, channelAuthorizer);
  handle.uninstall();
  assert.equal(Pusher.Runtime.createWebSocket, before);
  assert.equal(made.config.channelAuthorizer, channelAuthorizer);
  assert.equal(made.config.userAuthenticator, userAuthenticator);
  client().subscribe("orders");
  const socket = await subscribed();
  assert.doesNotMatch(socket.url, /rt=1/);
});

test("after uninstall the answer of a pending auth request is final", async (context) => {
  context.mock.method(Math, "random", () => 0);
  context.mock.method(console, "warn", () => {});
  start({ retry: { min: 0, max: 0 } });
  const answers = [];
  const channelAuthorization = { customHandler: (_, callback) => answers.push(callback) };
  const channel = client(undefined, { channelAuthorization }).subscribe("private-orders");
  const refused = [];
  channel.bind("pusher:subscription_error", ({ error }) => refused.push(error));
  const failure = (status) => Object.assign(new Error(`answer ${status}`), { status });
  (await until(() => answers[0]))(failure(502), null);
  handle.uninstall(); // while the plugin waits before the repetition
  (await until(() => answers[1]))(failure(503), null);
  assert.deepEqual(refused, ["answer 503"]);
});

test("after uninstall a failed attempt to connect is not repeated", async () => {
  start({ retry: { min: 20, max: 40 } });
  away = true;
  client();
  await until(() => opened.length >= 2);
  handle.uninstall();
  const before = opened.length;
  await sleep(500);
  assert.ok(opened.length <= before + 1, `${opened.length}`); // the one for which the plugin waited
});

test("install refuses other classes and numbers", () => {
  assert.throws(() => install({}), TypeError);
  assert.throws(() => install(Pusher, { jitter: -1 }), RangeError);
  start();
  assert.throws(() => install(Pusher), /uninstall/);
  assert.equal(FanfareResume.install, install);
});
