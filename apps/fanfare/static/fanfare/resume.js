// Exact resume and fast reconnects for pusher-js 8 and later, Laravel Echo included.
//
//     const handle = FanfareResume.install(Pusher, { onReset: (channel, reason) => reload(channel) });
//     const pusher = new Pusher(KEY, options);
//
// After a reconnect no event is missing and none comes twice, or `onReset` is called. While the server is away, the page
// tries to reach it every 0.5 to 2 s; pusher-js alone waits for 15 s after an attempt that failed.
//
// Load it before the first `new Pusher`: as a classic script it defines the global FanfareResume, as a module import
// `install` from resume.mjs. With a server that keeps no history it changes the reconnects only.
//
// How it works: pusher-js opens every WebSocket through the public Pusher.Runtime.createWebSocket. Here it gets an object
// that behaves like the WebSocket. The object learns the position of each channel (an epoch, which names the stream, and
// the offset of the last event), sends it when pusher-js subscribes again, and drops events that came before. Until a
// connection is open it replaces WebSockets that fail, and pusher-js sees one that is connecting. In each Pusher object
// it wraps the functions that ask the page's server for signatures, and asks again while that server is away.
(() => {
  "use strict";

  const INSTALLED = Symbol.for("fanfare.resume"); // also found by a second copy of this file

  // A server that restarts has all its clients back at once: pusher-js itself waits for exactly 0 or 1 s.
  const JITTER_MS = 2_000;
  // Pause before the next attempt to open a WebSocket, at random between two bounds; longer after a minute.
  const RETRY_MS = { min: 500, max: 2_000 };
  const LONG_RETRY_MS = { min: 1_000, max: 5_000 };
  const LONG_AFTER_MS = 60_000;
  // An attempt that is not answered within this time is replaced: the network drops it. A slow network gets more time at
  // the next attempt.
  const ATTEMPT_MS = 4_000;
  const LONGEST_ATTEMPT_MS = 15_000;
  // A subscription that the server could not take now is asked for again: pusher-js alone would wait for a reconnect.
  const ASK_AGAIN_MS = 1_000;
  const ASK_AGAIN_LONGEST_MS = 30_000;
  const UNAVAILABLE = 503;
  // An auth request that the network, a proxy or the server could not answer now is repeated. 0: there was no response.
  const NOT_NOW = new Set([0, 429, 502, UNAVAILABLE, 504]);
  const MOST_SIGN_TRIES = 8; // in some two minutes; then the page gets the error
  const SIGNERS = ["channelAuthorizer", "userAuthenticator"]; // in the configuration of a Pusher object
  // A page of history takes milliseconds; without an answer the server does not know the request.
  const HISTORY_TIMEOUT_MS = 10_000;

  const CONNECTING = 0;
  const CLOSED = 3;
  const ABNORMAL = { code: 1006, reason: "", wasClean: false }; // what a WebSocket that never opened reports

  /** As pusher-js reads it: JSON; other text stays text. */
  function decode(text) {
    if (typeof text !== "string") return text;
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }

  function warn(channel, reason) {
    console.warn(`FanfareResume: events of ${channel} may be missing (${reason}). Load its state again in onReset.`);
  }

  /** The pause in ms before a question is asked again, after so many tries. */
  function pause(tries) {
    return Math.min(ASK_AGAIN_LONGEST_MS, ASK_AGAIN_MS * 2 ** tries) * (0.5 + Math.random() / 2);
  }

  /** The attempts to reach one address: when the next one is due, in ms of performance.now(), and how many failed. */
  class Retries {
    due = null;
    failures = 0;
    #since = null; // when the first of them failed

    constructor(bounds) {
      this.bounds = bounds; // null: pusher-js decides what follows a failure
    }

    get attemptMs() {
      return Math.min(LONGEST_ATTEMPT_MS, ATTEMPT_MS * 2 ** this.failures);
    }

    /** An attempt failed. */
    fail() {
      const now = performance.now();
      this.#since ??= now;
      this.failures += 1;
      const { min, max } = now - this.#since > LONG_AFTER_MS ? LONG_RETRY_MS : this.bounds;
      this.due = now + min + Math.random() * (max - min);
    }

    end() {
      this.due = this.#since = null;
      this.failures = 0;
    }
  }

  /**
   * One Pusher object over all its connections: the positions of its channels.
   *
   * A position is `{epoch, offset, socketId, exact, channel}`. `socketId`: the connection on which it was reached, so
   * that the server leaves out what this client sent itself. `exact`: false until the first event of a rewind, whose
   * offset the server does not announce. `channel`: pusher-js's object, which is a new one after an unsubscribe, when the
   * position is of no use; null for a position that a former page stored.
   */
  class Client {
    constructor(pusher, address, storage, since) {
      this.pusher = pusher;
      this.address = address;
      this.socket = null;
      this.positions = new Map();
      this.retries = null; // since it was connected
      this.wanted = true; // false after pusher.disconnect(): the next connection is a person's wish, and does not wait
      this.storage = storage;
      this.onDisconnected = () => {
        this.wanted = false;
        this.retries?.end();
      };
      pusher.connection.bind("disconnected", this.onDisconnected);
      this.#restore();
      for (const [name, { epoch, offset }] of Object.entries(since)) {
        this.positions.set(name, { epoch, offset, exact: true, channel: null });
      }
    }

    established(socket, retries) {
      this.socket = socket;
      this.wanted = true;
      this.retries = retries;
      retries.end();
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
   * What pusher-js takes for a WebSocket: `send`, `close` and the four `on…` slots. Behind them is one WebSocket after
   * the other until one opens; the first is made when `retries` says so.
   */
  class ResumingSocket {
    onopen = null;
    onmessage = null;
    onclose = null;
    onerror = null;

    #plugin;
    #create;
    #retries;
    #socket = null;
    #timer = null; // until the next attempt, or until an attempt has taken too long
    #open = false;
    #closing = false;
    #client = null; // since the connection is established
    #socketId = "";
    #asked = new Map(); // channel -> the position that its pending subscribe named, or undefined
    #frames = new Map(); // channel -> its pending subscribe, {text, tries, timer}
    #questions = new Map(); // id -> a pending history call

    constructor(plugin, url, create, retries) {
      this.url = url;
      this.#plugin = plugin;
      this.#create = create;
      this.#retries = retries;
      if (retries.due > performance.now()) this.#wait();
      else this.#attempt();
    }

    get readyState() {
      if (!this.#open && !this.#closing) return CONNECTING;
      return this.#socket?.readyState ?? CLOSED;
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

    /** From here on no frame reaches the application, so none counts as delivered. */
    close(...reason) {
      if (this.#closing) return;
      this.#leave();
      if (this.#socket) this.#socket.close(...reason);
      else setTimeout(() => this.onclose?.(ABNORMAL));
    }

    /** The network is back, or the page is looked at again: do not wait any longer. */
    hurry() {
      if (this.#socket || this.#closing) return;
      clearTimeout(this.#timer);
      this.#attemptLate();
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

    #wait() {
      this.#timer = setTimeout(() => this.#attemptLate(), this.#retries.due - performance.now());
    }

    #attemptLate() {
      try {
        this.#attempt();
      } catch (error) {
        this.#leave();
        this.onerror?.(error);
        this.onclose?.(ABNORMAL);
      }
    }

    #attempt() {
      this.#retries.due = null; // if this attempt fails, the next one waits anew
      const socket = this.#create();
      this.#socket = socket;
      if (this.#retries.bounds) {
        this.#timer = setTimeout(() => {
          socket.onopen = socket.onerror = socket.onclose = socket.onmessage = null;
          socket.close();
          if (this.#retrying) this.#failed();
          else this.#closed(ABNORMAL);
        }, this.#retries.attemptMs);
      }
      socket.onopen = (event) => {
        clearTimeout(this.#timer);
        this.#open = true;
        this.onopen?.(event);
      };
      socket.onerror = (event) => {
        if (!this.#retrying) this.onerror?.(event);
      };
      socket.onclose = (event) => {
        if (this.#retrying) this.#failed();
        else this.#closed(event);
      };
      socket.onmessage = (event) => this.#incoming(event);
    }

    get #retrying() {
      return !this.#open && !this.#closing && this.#retries.bounds !== null;
    }

    /** A WebSocket did not open. pusher-js, which would wait for 15 s now, is not told. */
    #failed() {
      clearTimeout(this.#timer);
      this.#socket = null;
      this.#retries.fail();
      this.#wait();
    }

    #closed(event) {
      this.#leave();
      this.onclose?.(event);
    }

    #leave() {
      this.#closing = true;
      clearTimeout(this.#timer);
      this.#plugin.sockets.delete(this);
      for (const { timer } of this.#frames.values()) clearTimeout(timer);
      for (const { reject, timer } of this.#questions.values()) {
        clearTimeout(timer);
        reject(new Error("The connection was lost before the history arrived"));
      }
      this.#questions.clear();
      if (this.#client?.socket === this) {
        this.#client.socket = null;
        this.#client.save();
      }
    }

    #outgoing(text) {
      const frame = this.#client && this.#plugin.recovers && decode(text);
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
      if (!this.#plugin.recovers && this.#client) {
        this.onmessage?.(event);
        return;
      }
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
      this.#client?.established(this, this.#retries);
    }

    #advance(channel, offset) {
      return !this.#client || this.#client.advance(channel, offset, this.#socketId);
    }

    /** The server accepted a subscription. Returns why events are missing, or null. */
    #attached(channel, { stream, presence }) {
      if (!this.#asked.has(channel)) return null; // reported already
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
      pending.timer = setTimeout(() => this.send(pending.text), pause(pending.tries));
      pending.tries += 1;
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
    sockets = new Set(); // that have not closed
    #Pusher;
    #clients = new WeakMap();
    #signers = new WeakMap(); // by Pusher object: its functions before this plugin wrapped them
    #retries = new Map(); // by address
    #since;
    #bounds;
    #jitter;
    #storage;
    #ids = 0;
    #original;
    #replacement;

    constructor(
      Pusher,
      {
        jitter = JITTER_MS,
        onReset = warn,
        recover = true,
        retry = {},
        rewind = () => null,
        since = {},
        storage = null,
      } = {},
    ) {
      const runtime = Pusher?.Runtime;
      if (typeof runtime?.createWebSocket !== "function") {
        throw new TypeError("FanfareResume.install needs the Pusher class of pusher-js 8 or later");
      }
      if (runtime.createWebSocket[INSTALLED]) throw new Error("FanfareResume is installed: call uninstall() first");
      if (!(jitter >= 0 && jitter < Infinity)) throw new RangeError(`jitter is in milliseconds from 0, not ${jitter}`);
      this.#bounds = retry && { ...RETRY_MS, ...retry };
      if (this.#bounds && !(this.#bounds.min >= 0 && this.#bounds.max >= this.#bounds.min)) {
        throw new RangeError("retry has min and max in milliseconds, and max is not less than min");
      }
      this.#Pusher = Pusher;
      this.#jitter = jitter;
      this.#since = since;
      this.#storage = storage;
      this.onReset = onReset;
      this.recovers = recover;
      this.rewind = rewind;
      this.#original = runtime.createWebSocket;
      this.#replacement = (url) => this.#createWebSocket(url);
      this.#replacement[INSTALLED] = true;
      runtime.createWebSocket = this.#replacement;
      globalThis.addEventListener?.("online", this.#hurry);
      globalThis.addEventListener?.("pagehide", this.#save);
      globalThis.document?.addEventListener("visibilitychange", this.#onVisibility);
    }

    uninstall() {
      if (this.#Pusher.Runtime.createWebSocket === this.#replacement) {
        this.#Pusher.Runtime.createWebSocket = this.#original;
      }
      this.#replacement[INSTALLED] = false; // if another script has wrapped it, it makes plain WebSockets
      this.#save();
      globalThis.removeEventListener?.("online", this.#hurry);
      globalThis.removeEventListener?.("pagehide", this.#save);
      globalThis.document?.removeEventListener("visibilitychange", this.#onVisibility);
      for (const client of this.#live()) client.pusher.connection.unbind("disconnected", client.onDisconnected);
      for (const pusher of this.#Pusher.instances) Object.assign(pusher.config, this.#signers.get(pusher));
      this.#bounds = null; // the answer of a pending auth request is final
      for (const retries of this.#retries.values()) retries.bounds = null;
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
        client = new Client(pusher, address(url), this.#storage, this.#since);
        this.#clients.set(pusher, client);
      }
      client.address = address(url);
      return client;
    }

    nextId() {
      this.#ids += 1;
      return String(this.#ids);
    }

    #createWebSocket(url) {
      const plain = (target) => this.#original.call(this.#Pusher.Runtime, target);
      if (!this.#replacement[INSTALLED]) return plain(url);
      if (this.#bounds) for (const pusher of this.#Pusher.instances) this.#wrapSigners(pusher);
      const create = () => plain(this.recovers ? `${url}${url.includes("?") ? "&" : "?"}rt=1` : url);
      const socket = new ResumingSocket(this, url, create, this.#schedule(url));
      this.sockets.add(socket);
      return socket;
    }

    /** pusher-js asks for a signature once in a connection: a channel whose request failed stays unsubscribed. */
    #wrapSigners(pusher) {
      if (this.#signers.has(pusher)) return;
      const signers = Object.fromEntries(SIGNERS.map((name) => [name, pusher.config?.[name]]));
      if (!Object.values(signers).every((signer) => typeof signer === "function")) return;
      this.#signers.set(pusher, signers);
      for (const [name, signer] of Object.entries(signers)) {
        pusher.config[name] = (params, callback) => this.#sign(pusher, signer, params, callback);
      }
    }

    #sign(pusher, signer, params, callback, tries = 0) {
      const isCurrent = () =>
        pusher.connection.state === "connected" && pusher.connection.socket_id === params.socketId;
      signer(params, (error, data) => {
        // The signature is for another connection than the present one, for which pusher-js has asked anew.
        if (!isCurrent()) return;
        if (!this.#bounds || tries === MOST_SIGN_TRIES || !NOT_NOW.has(error?.status)) {
          callback(error, data);
          return;
        }
        if (tries === 0) console.warn(`FanfareResume: an auth request is repeated. ${error.message}`);
        setTimeout(() => {
          if (isCurrent()) this.#sign(pusher, signer, params, callback, tries + 1);
        }, pause(tries));
      });
    }

    /**
     * The retries of this address, with the time of the next attempt. pusher-js gives up on a WebSocket that takes long
     * and makes another: that one waits only for the rest.
     */
    #schedule(url) {
      let retries = this.#retries.get(address(url));
      if (!retries) {
        retries = new Retries(this.#bounds && this.#isPrimary(url) ? this.#bounds : null);
        this.#retries.set(address(url), retries);
      }
      if (retries.due === null && this.#returning(url)) {
        retries.due = performance.now() + Math.random() * this.#jitter;
      }
      return retries;
    }

    /**
     * Whether pusher-js is configured for this scheme. Without TLS it also tries TLS after 2 s if it may: a port that
     * speaks no TLS must not be asked every second.
     */
    #isPrimary(url) {
      const secure = url.startsWith("wss:");
      const meant = this.#Pusher.instances.filter(({ key }) => address(url).endsWith(`/app/${key}`));
      return meant.length === 0 || meant.some((pusher) => Boolean(pusher.shouldUseTLS?.() ?? secure) === secure);
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

    #hurry = () => {
      for (const socket of this.sockets) socket.hurry();
    };

    /** Hiding is all that a phone reports before it ends a page; and the timers of a hidden page are slow. */
    #onVisibility = () => {
      if (globalThis.document.visibilityState === "visible") this.#hurry();
      else this.#save();
    };
  }

  function address(url) {
    return url.split("?")[0];
  }

  /**
   * Bind `name` on a channel: `update(text, stream)` is called with the whole text of a stream whenever it changes.
   * `stream`: id, state (open, done, failed, cancelled, interrupted), meta, error, and `cancel()`, which needs a channel
   * rule that lets subscribers cancel. Returns a function that unbinds.
   */
  function follow(channel, name, update) {
    const streams = new Map();
    const handle = ({ id, at, text, state, meta, error }) => {
      const stream = streams.get(id) ?? {
        id,
        text: "",
        meta: undefined,
        cancel: () => channel.trigger("client-fanfare-cancel", { id }),
      };
      stream.text = stream.text.slice(0, at) + text;
      stream.meta = meta ?? stream.meta;
      Object.assign(stream, { state, error });
      streams.set(id, stream);
      update(stream.text, stream);
    };
    channel.bind(name, handle);
    return () => channel.unbind(name, handle);
  }

  /**
   * Call `update(data, revision)` when a message of the event `name` that the channel has kept gets a new version; `data`
   * is null for a deleted one. `revision`: id (the position of the message), by, at. Returns a function that unbinds.
   */
  function revisions(channel, name, update) {
    const revised = ({ id, event, data, by, at }) => {
      if (event === name) update(data === undefined ? null : decode(data), { id, by, at });
    };
    channel.bind("fanfare:revised", revised);
    channel.bind("fanfare:deleted", revised);
    return () => {
      channel.unbind("fanfare:revised", revised);
      channel.unbind("fanfare:deleted", revised);
    };
  }

  /** See resume.d.ts. */
  function install(Pusher, options) {
    const plugin = new Plugin(Pusher, options);
    const { subscribe } = Pusher.prototype;
    const subscribing = function (...values) {
      const channel = subscribe.apply(this, values);
      if (!channel.stream) {
        channel.stream = (name, update) => follow(channel, name, update);
        channel.revisions = (name, update) => revisions(channel, name, update);
        channel.bind("fanfare:member_updated", ({ user_id, user_info }) => {
          if (channel.members?.get(user_id)) channel.members.members[user_id] = user_info;
        });
      }
      return channel;
    };
    Pusher.prototype.subscribe = subscribing;
    return {
      stream: follow,
      revisions,
      history: (pusher, channel, page) => plugin.history(pusher, channel, page),
      positions: (pusher) => plugin.positions(pusher),
      uninstall: () => {
        if (Pusher.prototype.subscribe === subscribing) Pusher.prototype.subscribe = subscribe;
        plugin.uninstall();
      },
    };
  }

  globalThis.FanfareResume = { install };
  if (typeof module === "object" && module.exports) module.exports = { install };
})();
