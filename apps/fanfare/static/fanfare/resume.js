// Exact resume for pusher-js 8 and later, Laravel Echo included: after a reconnect nothing is missing and nothing comes
// twice, or the page is told that it cannot be so.
//
//     const handle = FanfareResume.install(Pusher, { onReset: (channel, reason) => reload(channel) });
//     const pusher = new Pusher(KEY, options);
//
// Load it before the first `new Pusher`: as a classic script it defines the global FanfareResume, as a module import
// `install` from resume.mjs. Without a server that keeps the channels' history it changes nothing but the reconnects'
// jitter.
//
// How: pusher-js opens every WebSocket through the public Pusher.Runtime.createWebSocket. Here it gets an object that
// behaves like the WebSocket and reads along. It learns where each channel stands (an epoch, which names the stream,
// and the offset of the last event), says so when pusher-js subscribes again, and holds back what came already.
(() => {
  "use strict";

  const INSTALLED = Symbol.for("fanfare.resume"); // also found by a second copy of this file

  // A server that restarts has all its clients back at once: pusher-js itself waits for exactly 0 or 1 s.
  const JITTER_MS = 2_000;
  // A subscription that the server could not take now is asked for again: pusher-js alone would wait for a reconnect.
  const ASK_AGAIN_MS = 1_000;
  const ASK_AGAIN_LONGEST_MS = 30_000;
  const UNAVAILABLE = 503;
  // A page of history takes milliseconds; without an answer the server does not know the question.
  const HISTORY_TIMEOUT_MS = 10_000;

  const CONNECTING = 0;
  const CLOSED = 3;
  const ABNORMAL = { code: 1006, reason: "", wasClean: false }; // what a WebSocket that never opened reports

  /** As pusher-js reads it: JSON, and what is none stays text. */
  function decode(text) {
    if (typeof text !== "string") return text;
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }

  function warn(channel, reason) {
    console.warn(`FanfareResume: events of ${channel} may be missing (${reason}). Load its state anew in onReset.`);
  }

  /**
   * One Pusher object over all its connections: where its channels stand.
   *
   * A position is `{epoch, offset, socketId, exact, channel}`. `socketId`: on which connection it was reached, so that
   * the server leaves out what this client sent itself. `exact`: false until the first event of a rewind, whose offset
   * the server does not announce. `channel`: pusher-js's object, a new one after an unsubscribe, when the position is
   * of no use; not known of what a former page stored.
   */
  class Client {
    constructor(pusher, address, storage) {
      this.pusher = pusher;
      this.address = address;
      this.socket = null;
      this.positions = new Map();
      this.wanted = true; // false after pusher.disconnect(): the next connection is a person's wish, and does not wait
      this.due = null; // when the connection that replaces a lost one may open, in ms of performance.now()
      this.storage = storage;
      this.onDisconnected = () => {
        this.wanted = false;
        this.due = null;
      };
      pusher.connection.bind("disconnected", this.onDisconnected);
      this.#restore();
    }

    established(socket) {
      this.socket = socket;
      this.wanted = true;
      this.due = null;
    }

    /** Where to resume this channel, or undefined. */
    known(name) {
      const position = this.positions.get(name);
      if (position?.channel && position.channel !== this.pusher.channel(name)) {
        this.positions.delete(name); // unsubscribed while there was no connection
        return undefined;
      }
      return position;
    }

    stand(name, epoch, offset, socketId, exact = true) {
      this.positions.set(name, { epoch, offset, socketId, exact, channel: this.pusher.channel(name) });
    }

    /** Whether this event is new. */
    advance(name, offset, socketId) {
      const position = this.positions.get(name);
      if (!position) return true;
      if (position.exact && offset <= position.offset) return false;
      position.offset = offset;
      position.socketId = socketId;
      position.exact = true;
      return true;
    }

    /** Keep the positions for the next page of this tab. */
    save() {
      if (!this.storage) return;
      const kept = [...this.positions]
        .filter(([name]) => this.known(name))
        .map(([name, { epoch, offset, socketId }]) => [name, { epoch, offset, socketId }]);
      try {
        this.storage.setItem(this.#key(), JSON.stringify(Object.fromEntries(kept)));
      } catch (error) {
        console.warn("FanfareResume: the positions could not be stored.", error);
      }
    }

    #restore() {
      let stored = null;
      try {
        stored = JSON.parse(this.storage?.getItem(this.#key()) ?? null);
      } catch (error) {
        console.warn("FanfareResume: the positions could not be read.", error);
      }
      for (const [name, { epoch, offset, socketId }] of Object.entries(stored ?? {})) {
        this.positions.set(name, { epoch, offset, socketId, exact: true, channel: null });
      }
    }

    #key() {
      return `fanfare.resume:${this.address}`;
    }
  }

  /**
   * What pusher-js takes for a WebSocket: `send`, `close` and the four `on…` slots, with a WebSocket behind them that
   * opens now or after `wait` ms.
   */
  class ResumingSocket {
    onopen = null;
    onmessage = null;
    onclose = null;
    onerror = null;

    #plugin;
    #create;
    #socket = null;
    #timer = null;
    #closing = false;
    #client = null; // since the connection is established
    #socketId = "";
    #asked = new Map(); // channel -> the position that its pending subscribe named, or undefined
    #frames = new Map(); // channel -> its pending subscribe, {text, tries, timer}
    #questions = new Map(); // id -> a pending history call

    constructor(plugin, url, create, wait) {
      this.url = url;
      this.#plugin = plugin;
      this.#create = create;
      if (wait > 0) this.#timer = setTimeout(() => this.#openLate(), wait);
      else this.#open();
    }

    get readyState() {
      return this.#socket?.readyState ?? (this.#closing ? CLOSED : CONNECTING);
    }

    get bufferedAmount() {
      return this.#socket?.bufferedAmount ?? 0;
    }

    get protocol() {
      return this.#socket?.protocol ?? "";
    }

    get extensions() {
      return this.#socket?.extensions ?? "";
    }

    send(text) {
      this.#socket.send(this.#outgoing(text));
    }

    /** From here on nothing reaches the application, so nothing counts as delivered. */
    close(...reason) {
      if (this.#closing) return;
      clearTimeout(this.#timer);
      this.#leave();
      if (this.#socket) this.#socket.close(...reason);
      else setTimeout(() => this.onclose?.(ABNORMAL));
    }

    /** A page of a channel's history, over this connection. */
    history(channel, before, limit) {
      const rid = this.#plugin.nextId();
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          this.#questions.delete(rid);
          reject(new Error(`The history of ${channel} was not answered within ${HISTORY_TIMEOUT_MS / 1000} s`));
        }, HISTORY_TIMEOUT_MS);
        this.#questions.set(rid, { resolve, reject, timer });
        this.#socket.send(JSON.stringify({ event: "pusher:history", data: { channel, before, limit, rid } }));
      });
    }

    #open() {
      this.#socket = this.#create();
      this.#socket.onopen = (event) => this.onopen?.(event);
      this.#socket.onerror = (event) => this.onerror?.(event);
      this.#socket.onclose = (event) => this.#closed(event);
      this.#socket.onmessage = (event) => this.#incoming(event);
    }

    #openLate() {
      this.#plugin.opens(this.url);
      try {
        this.#open();
      } catch (error) {
        this.#leave();
        this.onerror?.(error);
        this.onclose?.(ABNORMAL);
      }
    }

    #closed(event) {
      this.#leave();
      this.onclose?.(event);
    }

    #leave() {
      this.#closing = true;
      for (const { timer } of this.#frames.values()) clearTimeout(timer);
      for (const { reject, timer } of this.#questions.values()) {
        clearTimeout(timer);
        reject(new Error("The connection was lost before the history came"));
      }
      this.#questions.clear();
      if (this.#client?.socket === this) {
        this.#client.socket = null;
        this.#client.save();
      }
    }

    #outgoing(text) {
      const frame = this.#client && decode(text);
      const channel = frame?.data?.channel;
      if (frame?.event === "pusher:unsubscribe") {
        this.#settled(channel);
        this.#asked.delete(channel);
        this.#client.positions.delete(channel);
      } else if (frame?.event === "pusher:subscribe") {
        const position = this.#client.known(channel);
        const rewind = this.#plugin.rewind(channel);
        this.#asked.set(channel, position);
        this.#frames.set(channel, { tries: 0, ...this.#frames.get(channel), text });
        if (position) {
          frame.data.resume = { epoch: position.epoch, offset: position.offset, socket_id: position.socketId };
        } else if (rewind) {
          frame.data.rewind = rewind;
        }
        return JSON.stringify(frame);
      }
      return text;
    }

    #incoming(event) {
      if (this.#closing) return;
      const frame = decode(event.data);
      const channel = frame?.channel;
      const data = () => decode(frame.data) ?? {};
      let lost = null;
      switch (frame?.event) {
        case "pusher:connection_established":
          try {
            this.onmessage?.(event);
          } finally {
            this.#established(data().socket_id); // pusher-js has the socket id now too
          }
          return;
        case "pusher_internal:subscription_succeeded":
          this.#settled(channel);
          lost = this.#attached(channel, data());
          break;
        case "pusher:stream": // the same for presence channels, whose success pusher-js shows as members
          lost = this.#attached(channel, { stream: data() });
          break;
        case "pusher:stream_reset":
          lost = this.#reset(channel, data());
          break;
        case "pusher:subscription_error":
          if (data().status === UNAVAILABLE) this.#askAgain(channel);
          break;
        case "pusher:history":
          this.#answered(data());
          return;
        default:
          if (Number.isInteger(frame?.offset) && !this.#advance(channel, frame.offset)) return;
      }
      try {
        this.onmessage?.(event);
      } finally {
        if (lost) this.#plugin.onReset(channel, lost); // also where a handler of the page throws
      }
    }

    #established(socketId) {
      this.#socketId = socketId;
      this.#client = this.#plugin.clientOf(socketId, this.url);
      this.#client?.established(this);
    }

    #advance(channel, offset) {
      return !this.#client || this.#client.advance(channel, offset, this.#socketId);
    }

    /** The server took a subscription. Returns why events are missing, or null. */
    #attached(channel, { stream, presence }) {
      if (!this.#asked.has(channel)) return null; // told already
      const asked = this.#asked.get(channel);
      if (!stream && presence) {
        this.#client.positions.delete(channel); // until `pusher:stream` says where it stands
        return null;
      }
      this.#asked.delete(channel);
      if (!stream?.epoch) {
        this.#client.positions.delete(channel);
        return asked ? stream?.reason ?? "not_enabled" : null;
      }
      const { epoch, offset, replayed = 0, recovered = false, reason } = stream;
      if (asked && recovered && replayed) {
        // The offsets of what follows bring it on. Until then it is where, and on which connection, it was.
        this.#client.stand(channel, epoch, asked.offset, asked.socketId);
        return null;
      }
      this.#client.stand(channel, epoch, offset - replayed, this.#socketId, replayed === 0);
      return asked && !recovered ? reason ?? "position_expired" : null;
    }

    #reset(channel, { epoch, offset, reason = "gap" }) {
      if (epoch) this.#client?.stand(channel, epoch, offset, this.#socketId);
      else this.#client?.positions.delete(channel);
      return reason;
    }

    #askAgain(channel) {
      const pending = this.#frames.get(channel);
      if (!pending) return;
      const longest = Math.min(ASK_AGAIN_LONGEST_MS, ASK_AGAIN_MS * 2 ** pending.tries);
      pending.tries += 1;
      pending.timer = setTimeout(() => this.send(pending.text), longest * (0.5 + Math.random() / 2));
    }

    #settled(channel) {
      clearTimeout(this.#frames.get(channel)?.timer);
      this.#frames.delete(channel);
    }

    #answered({ rid, error, items = [], next = null }) {
      const question = this.#questions.get(rid);
      if (!question) return;
      this.#questions.delete(rid);
      clearTimeout(question.timer);
      if (error) question.reject(new Error(error.message ?? String(error)));
      else question.resolve({ items: items.map((item) => ({ ...item, data: decode(item.data) })), next });
    }
  }

  /** One `install`. */
  class Plugin {
    #Pusher;
    #clients = new WeakMap();
    #jitter;
    #storage;
    #ids = 0;
    #original;
    #replacement;

    constructor(Pusher, { jitter = JITTER_MS, onReset = warn, rewind = () => null, storage = null } = {}) {
      const runtime = Pusher?.Runtime;
      if (typeof runtime?.createWebSocket !== "function") {
        throw new TypeError("FanfareResume.install wants the Pusher class of pusher-js 8 or later");
      }
      if (runtime.createWebSocket[INSTALLED]) throw new Error("FanfareResume is installed: call uninstall() first");
      if (!(jitter >= 0 && jitter < Infinity)) throw new RangeError(`jitter is in milliseconds from 0, not ${jitter}`);
      this.#Pusher = Pusher;
      this.#jitter = jitter;
      this.#storage = storage;
      this.onReset = onReset;
      this.rewind = rewind;
      this.#original = runtime.createWebSocket;
      this.#replacement = (url) => this.#createWebSocket(url);
      this.#replacement[INSTALLED] = true;
      runtime.createWebSocket = this.#replacement;
      if (storage) {
        globalThis.addEventListener?.("pagehide", this.#save);
        globalThis.document?.addEventListener("visibilitychange", this.#save); // all that a phone tells before the end
      }
    }

    uninstall() {
      if (this.#Pusher.Runtime.createWebSocket === this.#replacement) {
        this.#Pusher.Runtime.createWebSocket = this.#original;
      }
      this.#replacement[INSTALLED] = false; // where somebody else has wrapped it, it hands over plain WebSockets
      this.#save();
      globalThis.removeEventListener?.("pagehide", this.#save);
      globalThis.document?.removeEventListener("visibilitychange", this.#save);
      for (const client of this.#live()) client.pusher.connection.unbind("disconnected", client.onDisconnected);
    }

    positions(pusher = null) {
      const found = {};
      for (const client of this.#live()) {
        if (pusher && client.pusher !== pusher) continue;
        for (const [name, { epoch, offset }] of client.positions) found[name] = { epoch, offset };
      }
      return found;
    }

    async history(pusher, channel, { before = null, limit = 50 } = {}) {
      const socket = this.#clients.get(pusher)?.socket;
      if (!socket) throw new Error(`There is no connection to ask for the history of ${channel}`);
      return socket.history(channel, before, limit);
    }

    /** The client whose connection has this id: pusher-js does not say for whom it opens a WebSocket. */
    clientOf(socketId, url) {
      const pusher = this.#Pusher.instances.find(
        ({ connection }) => connection.socket_id === socketId && connection.state === "connected",
      );
      if (!pusher) return null;
      let client = this.#clients.get(pusher);
      if (!client) {
        client = new Client(pusher, address(url), this.#storage);
        this.#clients.set(pusher, client);
      }
      client.address = address(url);
      return client;
    }

    /** A WebSocket that waited opens: should it fail, the next one waits anew. */
    opens(url) {
      const client = this.#returning(url);
      if (client) client.due = null;
    }

    nextId() {
      this.#ids += 1;
      return String(this.#ids);
    }

    #createWebSocket(url) {
      const plain = (target) => this.#original.call(this.#Pusher.Runtime, target);
      if (!this.#replacement[INSTALLED]) return plain(url);
      const create = () => plain(`${url}${url.includes("?") ? "&" : "?"}rt=1`);
      return new ResumingSocket(this, url, create, this.#wait(url));
    }

    /**
     * How long the WebSocket that is to be made waits, in ms. pusher-js gives up on one that takes long and makes
     * another: that one waits only for the rest.
     */
    #wait(url) {
      const client = this.#returning(url);
      if (!client) return 0;
      const now = performance.now();
      client.due ??= now + Math.random() * this.#jitter;
      const wait = client.due - now;
      if (wait <= 0) client.due = null;
      return wait;
    }

    /** A client of this address that lost its connection and wants it back. */
    #returning(url) {
      return this.#live().find(
        (client) => client.wanted && client.address === address(url) && client.pusher.connection.state !== "connected",
      );
    }

    #live() {
      return this.#Pusher.instances.map((pusher) => this.#clients.get(pusher)).filter(Boolean);
    }

    #save = () => {
      for (const client of this.#live()) client.save();
    };
  }

  function address(url) {
    return url.split("?")[0];
  }

  /** See resume.d.ts. */
  function install(Pusher, options) {
    const plugin = new Plugin(Pusher, options);
    return {
      history: (pusher, channel, page) => plugin.history(pusher, channel, page),
      positions: (pusher) => plugin.positions(pusher),
      uninstall: () => plugin.uninstall(),
    };
  }

  globalThis.FanfareResume = { install };
  if (typeof module === "object" && module.exports) module.exports = { install };
})();
