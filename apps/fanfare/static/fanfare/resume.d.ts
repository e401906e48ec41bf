// Exact resume and fast reconnects for pusher-js 8 and later. For resume.js (CommonJS, and the global of the classic script).

export as namespace FanfareResume;

/** The position of a channel: `epoch` names its stream, `offset` is that of the last event. */
export interface Position {
  epoch: string;
  offset: number;
}

/**
 * Why events of a channel may be missing: `position_expired` (older than what is kept), `epoch_changed` (another
 * stream), `too_many` (more than is replayed), `gap`, `engine_unavailable`, `not_enabled`; later servers may know more.
 */
export type ResetReason =
  | "position_expired"
  | "epoch_changed"
  | "too_many"
  | "gap"
  | "engine_unavailable"
  | "invalid_position"
  | "not_enabled"
  | (string & {});

/** `data`: as a handler gets it, but still encrypted on encrypted channels. `user_id`: of the client that sent it. */
export interface HistoryItem {
  offset: number;
  event: string;
  channel: string;
  data: unknown;
  user_id?: string;
}

export interface HistoryPage {
  /** The newest first. */
  items: HistoryItem[];
  /** Hand it over as `before` for the page before this one; null at the end. */
  next: Position | null;
}

export interface Options {
  /** A reconnect waits for a random time up to this, in ms. Default 2000, 0 for none; keep it below 10000. */
  jitter?: number;
  /** The pause between two attempts to reach a server that is away, at random between these bounds, in ms. Default
   *  500 and 2000. An auth request that is not answered, or with 429, 502, 503 or 504, is repeated up to 8 times.
   *  `false`: pusher-js decides, and waits for 15 s and more; auth requests are not repeated. */
  retry?: { min?: number; max?: number } | false;
  /** Recover missed events. Default true. With `false` only the reconnects change. */
  recover?: boolean;
  /** Not all missed events could be recovered: load the channel's state again. Default: a warning. */
  onReset?: (channel: string, reason: ResetReason) => void;
  /** Which kept events a first subscribe brings: the last `count`, or those of the last `seconds`. */
  rewind?: (channel: string) => { count: number } | { seconds: number } | null | undefined;
  /** Where the first subscription to a channel starts: the positions of a server's `snapshot()`. Default: at the new
   *  events. */
  since?: Record<string, Position>;
  /** Keeps positions over a reload of the page, for instance `sessionStorage`. Default: none. */
  storage?: Pick<Storage, "getItem" | "setItem"> | null;
}

/** A message that grows, as `stream` hands it over. */
export interface Streamed {
  id: string;
  text: string;
  state: "open" | "done" | "failed" | "cancelled" | "interrupted";
  /** The producer's, or undefined. */
  meta: any;
  /** The producer's, in the state `failed`. */
  error?: string;
  /** Stop the producer. Needs a private or presence channel, and a channel rule that lets subscribers cancel. */
  cancel(): void;
}

/** A change of a message that the channel has kept. */
export interface Revision {
  /** The position of the message, `EPOCH:OFFSET`, as in the history. */
  id: string;
  /** The user, or null for the project itself. */
  by: string | null;
  /** In ISO 8601. */
  at: string;
}

/** A Pusher object; for Laravel Echo `echo.connector.pusher`. */
export interface PusherClient {
  channel(name: string): unknown;
}

/** The class that pusher-js exports. */
export interface PusherClass {
  Runtime: unknown;
  instances: PusherClient[];
}

export interface Handle {
  /** A page of a channel's history. The client must be subscribed. Rejects after 10 s without an answer. */
  history(
    pusher: PusherClient,
    channel: string,
    page?: { before?: Position | null; limit?: number },
  ): Promise<HistoryPage>;
  /** Call `update` with the whole text of a stream whenever it changes. Returns a function that unbinds. Each channel
   *  has it as `channel.stream(event, update)`. */
  stream(channel: unknown, event: string, update: (text: string, stream: Streamed) => void): () => void;
  /** Call `update` with the new data of a kept message of this event, or with null if it was deleted. Returns a function
   *  that unbinds. Each channel has it as `channel.revisions(event, update)`. */
  revisions(channel: unknown, event: string, update: (data: any, revision: Revision) => void): () => void;
  /** By channel; those of one client, or of all together. */
  positions(pusher?: PusherClient): Record<string, Position>;
  /** Back to the plain pusher-js. Connections that are open stay as they are; pusher-js gets the error if the attempt
   *  to connect or the auth request that is pending fails. */
  uninstall(): void;
}

/** Call it once, before the first `new Pusher`. Throws a TypeError for anything that is not pusher-js 8 or later. */
export function install(Pusher: PusherClass, options?: Options): Handle;
