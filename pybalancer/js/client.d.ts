/**
 * A WebSocket for browsers that comes back: it asks pybalancer's directory where to connect, and when a connection is
 * lost it waits its share of time and asks again. How to use it: docs/clients.md.
 */

/** What the times are, in milliseconds; the same names as in the directory's answers, whose values go before these. */
export interface Retry {
  /** Nobody comes back sooner. Default 0. */
  min_ms?: number;
  /** No wait is longer, unless the server asks for it. Default 30000, at least 10. */
  max_ms?: number;
  /** The first wait is up to this, each further one up to twice the one before. Default 500, at least 10. */
  base_ms?: number;
  /** A connection that lasted as long was a good one: waits are short again after it. Default 10000. */
  stable_ms?: number;
  /** After Close 1012 (restart) or 1013 (try again later) the wait is up to this. Default 5000. */
  window_ms?: number;
  /** Where to connect when the directory cannot be reached: the balancer's own ws: or wss: URL. */
  fallback?: string | null;
}

/** What is sent while the connection is away waits in a queue. Without one `send` throws then. */
export interface Queue {
  /** Default 256. */
  messages?: number;
  /** Default 1 MiB. */
  bytes?: number;
}

/** Browsers cannot ping, so the application has to: a message goes out after a time of silence, and any must come. */
export interface Heartbeat {
  /** Milliseconds of silence after which to ask. */
  interval_ms: number;
  /** Milliseconds until a connection that stays silent is given up. Default 10000. */
  timeout_ms?: number;
  /** What to send. Default "ping". */
  message?: Data | (() => Data);
  /** Whether a message is a reply to the heartbeat, and no event then. */
  isReply?: (data: any) => boolean;
}

export interface Options {
  retry?: Retry;
  queue?: Queue | boolean;
  heartbeat?: Heartbeat;
  /** Milliseconds for one answer of the directory, and for one connection to open. Default 10000, at most an hour. */
  timeout_ms?: number;
  /** More for `fetch` when it asks the directory: headers, credentials. */
  request?: RequestInit;
  /**
   * Whether not to come back after this. `code` is a Close code, or below 1000 the status of the directory's answer (0:
   * it cannot be reached); `usual` is what `isFinal` says. What it throws ends it.
   */
  final?: (code: number, reason: string, usual: boolean) => boolean;
  /** Heed whether the page is hidden and the browser offline. Default true. */
  page?: boolean;
  /** Where time, chance, network and page are found. Default `globalThis`. */
  world?: World;
}

export interface World {
  performance: {now(): number};
  setTimeout(call: () => void, ms: number): any;
  clearTimeout(timer: any): void;
  Math: {random(): number};
  Date: {now(): number};
  WebSocket: new (url: string, protocols: string[]) => WebSocket;
  fetch(url: string, init: RequestInit): Promise<Response>;
  location?: {href: string};
  document?: {hidden: boolean; addEventListener(type: string, call: (event: Event) => void, options?: any): void};
  navigator?: {onLine: boolean};
  addEventListener?(type: string, call: (event: Event) => void, options?: any): void;
}

export type Data = string | ArrayBuffer | ArrayBufferView<ArrayBuffer> | Blob;

/** Tells of a connection that was lost, or did not come about, and of the wait before the next try. */
export interface Reconnecting {
  /** The Close code, 1006 if there was none, or below 1000 the status of the directory's answer. */
  code: number;
  reason: string;
  delay_ms: number;
}

export interface ReconnectingSocketEventMap extends WebSocketEventMap {
  reconnecting: CustomEvent<Reconnecting>;
}

/**
 * `open` comes for every connection that opens, `close` once: when it is over for good. In between `readyState` is
 * CONNECTING and `reconnecting` tells why. `error` comes before a `close` that was not clean, unless `close()` was called.
 */
export class ReconnectingSocket extends EventTarget implements WebSocket {
  /**
   * @param directoryOrUrl http: or https: is the directory's address, perhaps relative to the page; ws: or wss: is
   *   connected to as it is.
   * @throws SyntaxError for a URL or a subprotocol that cannot be
   */
  constructor(directoryOrUrl: string | URL, protocols?: string | string[], options?: Options);

  static readonly CONNECTING: 0;
  static readonly OPEN: 1;
  static readonly CLOSING: 2;
  static readonly CLOSED: 3;
  readonly CONNECTING: 0;
  readonly OPEN: 1;
  readonly CLOSING: 2;
  readonly CLOSED: 3;

  /** Where it is connected or was last; the directory's address before that. */
  readonly url: string;
  /** The backend's name, if the directory told it. */
  readonly backend: string | null;
  readonly readyState: 0 | 1 | 2 | 3;
  readonly protocol: string;
  readonly extensions: string;
  /** Bytes that the network has not taken, and those that are queued. */
  readonly bufferedAmount: number;
  binaryType: BinaryType;

  onopen: ((this: WebSocket, event: Event) => any) | null;
  onmessage: ((this: WebSocket, event: MessageEvent) => any) | null;
  onerror: ((this: WebSocket, event: Event) => any) | null;
  onclose: ((this: WebSocket, event: CloseEvent) => any) | null;
  onreconnecting: ((this: WebSocket, event: CustomEvent<Reconnecting>) => any) | null;

  /**
   * Hand a message to the connection, or queue it. Each goes to one connection once, in the order of the calls, and
   * nothing is sent again: what a connection took with it when it was lost may or may not have arrived.
   * @throws InvalidStateError without a queue, while there is no connection
   * @throws QuotaExceededError when the queue is full; it is as it was then
   */
  send(data: Data): void;

  /**
   * End it for good; what is queued is dropped.
   * @throws InvalidAccessError for a code other than 1000 and 3000 to 4999
   * @throws SyntaxError for a reason of more than 123 bytes
   */
  close(code?: number, reason?: string): void;

  addEventListener<K extends keyof ReconnectingSocketEventMap>(
    type: K,
    listener: (this: WebSocket, event: ReconnectingSocketEventMap[K]) => any,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof ReconnectingSocketEventMap>(
    type: K,
    listener: (this: WebSocket, event: ReconnectingSocketEventMap[K]) => any,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | EventListenerOptions,
  ): void;
}

export const DEFAULTS: Readonly<Required<Retry>>;

/** Whether a Close code, or below 1000 an HTTP status, says that coming back is of no use. */
export function isFinal(code: number): boolean;

/** The milliseconds that a Retry-After field asks for (RFC 9110, section 10.2.3), at most an hour; null: none. */
export function retryAfter(text: string | null, wall: number): number | null;

/** What to do after an answer of the directory: connect, or wait (and then ask again). */
export type Next = {url: string; backend: string | null} | {status: number; after: number | null};

/** The rules alone: times, chance (uniform in [0, 1)) and answers go in, decisions come out. */
export class Comeback {
  constructor(target: string, retry?: Retry, final?: Options["final"]);
  /** Losses since the last connection that lasted. */
  losses: number;
  /** What an answer means: status, text, Retry-After field, milliseconds of the wall clock. Status 0: there is none. */
  answer(status: number, text?: string, after?: string | null, wall?: number): Next;
  /** A connection has opened. */
  opened(now: number): void;
  /** How long to wait after an end, or after an answer that had no address; null: for ever. */
  wait(
    now: number,
    chance: number,
    end: {code: number; reason?: string; after?: number | null},
    hidden?: boolean,
  ): number | null;
  /** When to try instead of `at`, now that there is hope; never before the time that a server asked for. */
  sooner(now: number, chance: number, at: number): number;
}
