// Types: client.d.ts. Use: docs/clients.md.

export const DEFAULTS = {
  min_ms: 0, max_ms: 30000, base_ms: 500, stable_ms: 10000, window_ms: 5000, fallback: null,
};
const ADDRESS = /^wss?:\/\/[\w.:[\]-]+([/?][!"$-~]*)?$/i;

const time = (value) => (value >= 0 && typeof value == "number" ? Math.min(value, 3600000) : null);
const node = (url) => url.split("?")[0]; // a ticket in the query is another one each time

export function isFinal(code) {
  if (code < 1000) return code >= 400 && code < 500 && ![408, 425, 429].includes(code);
  return [1000, 1008, 3000, 3003].includes(code) || (code >= 4000 && code < 5000);
}

export function retryAfter(text, wall) {
  return time(/^\d+$/.test(text) ? text * 1000 : / GMT$/.test(text) ? Math.max(Date.parse(text) - wall, 0) : null);
}

export class Comeback {
  losses = 0;
  #settings; #final; #secure; #url; #opened = null; #failed = new Set(); #notBefore = 0;

  constructor(target, retry = {}, final = (code, reason, usual) => usual) {
    this.#final = final;
    this.#secure = /^(http|ws)s:/i.test(target);
    this.#settings = {...DEFAULTS, ...this.#kept(retry)};
  }

  answer(status, text, after, wall) {
    let body;
    try { body = JSON.parse(text); } catch { /* not from a directory */ }
    const hint = body?.retry, settings = Object.assign(this.#settings, this.#kept(hint));
    if (status == 200 && this.#usable(body?.url)) {
      const more = Array.isArray(body.alternatives) ? body.alternatives : [];
      const urls = [body.url, ...more.slice(0, 16).filter((url) => this.#usable(url))];
      this.#url = urls.find((url) => !this.#failed.has(node(url)));
      if (!this.#url) this.#failed.clear();
      const url = (this.#url ??= body.url);
      return {url, backend: url == body.url && typeof body.backend == "string" ? body.backend : null};
    }
    after = time(hint?.after_ms) ?? retryAfter(after, wall);
    const told = isFinal(status) || ([200, 408, 425, 429, 503].includes(status) && (Object(hint) == hint || after != null));
    return settings.fallback && !told ? {url: settings.fallback, backend: null} : {status, after};
  }

  opened(now) {
    this.#opened = now;
    this.#failed.clear();
  }

  wait(now, chance, {code, reason = "", after = null}, hidden) {
    const {min_ms, max_ms, base_ms, stable_ms, window_ms} = this.#settings;
    if (this.#opened == null) this.#url && this.#failed.add(node(this.#url));
    else if (now - this.#opened >= stable_ms) this.losses = 0;
    this.#opened = this.#url = null;
    if (this.#final(code, reason, isFinal(code))) return null;
    const grown = Math.max(base_ms, 10) * 2 ** this.losses++;
    let top = Math.max(min_ms, 10, hidden ? max_ms : Math.min(max_ms, grown));
    if (code == 1012 || code == 1013) top = Math.max(top, time(+(/\bwindow_ms=(\d+)/.exec(reason)?.[1] ?? window_ms)));
    this.#notBefore = now + (after ?? min_ms);
    return after == null ? min_ms + chance * (top - min_ms) : after + chance * top;
  }

  sooner(now, chance, at) {
    const soon = Math.max(this.#notBefore, now + chance * this.#settings.base_ms);
    return at > now ? Math.min(at, soon) : soon;
  }

  #usable(url) {
    return typeof url == "string" && (this.#secure ? /^wss/i : /^ws/i).test(url) && ADDRESS.test(url) ? url : null;
  }

  #kept(hint) {
    const kept = {};
    for (const name in DEFAULTS) {
      const value = hint?.[name], good = name == "fallback" ? this.#usable(value) : time(value);
      if (good != null) kept[name] = good;
    }
    return kept;
  }
}

const refuse = (kind, why) => { throw new DOMException(why, kind); };

export class ReconnectingSocket extends EventTarget {
  url; readyState = 0; backend = null;
  #target; #protocols; #options; #world; #page; #comeback; #socket; #asking; #timer; #beat; #at; #heard;
  #queue = []; #queued = 0; #binary = "blob"; #over = new AbortController();

  constructor(target, protocols = [], options = {}) {
    super();
    const world = (this.#world = options.world ?? globalThis);
    let url;
    try { url = new URL(target, world.location?.href); } catch { /* said in a moment */ }
    if (!/^(http|ws)s?:$/.test(url?.protocol) || url.hash) refuse("SyntaxError", `invalid URL: ${target}`);
    const names = (this.#protocols = [protocols].flat().map(String));
    if (new Set(names).size < names.length || !names.every((name) => /^[\w!#-'*+.^`|~-]+$/.test(name)))
      refuse("SyntaxError", `invalid subprotocols: ${names}`);
    this.url = this.#target = url.href;
    this.#options = {...options, timeout_ms: time(options.timeout_ms) ?? 10000};
    this.#page = options.page === false ? {} : world;
    this.#comeback = new Comeback(url.href, options.retry, options.final);
    for (const type of ["open", "message", "error", "close", "reconnecting"]) {
      this[`on${type}`] = null;
      this.addEventListener(type, (event) => this[`on${type}`]?.(event));
    }
    this.#begin(true);
    const {signal} = this.#over;
    for (const type of ["online", "offline"]) this.#page.addEventListener?.(type, this.#wake, {signal});
    this.#page.document?.addEventListener("visibilitychange", this.#wake, {signal});
  }

  get protocol() { return this.#socket?.protocol ?? ""; }
  get extensions() { return this.#socket?.extensions ?? ""; }
  get bufferedAmount() { return (this.#socket?.bufferedAmount ?? 0) + this.#queued; }
  get binaryType() { return this.#binary; }
  set binaryType(type) {
    if (!["blob", "arraybuffer"].includes(type)) return;
    this.#binary = type;
    if (this.#socket) this.#socket.binaryType = type;
  }

  send(data) {
    const {queue} = this.#options, {messages = 256, bytes = 1 << 20} = queue || {};
    if (this.readyState > 1) return;
    if (this.readyState && (!queue || this.#socket.readyState == 1)) return this.#socket.send(data);
    if (!queue) refuse("InvalidStateError", "still CONNECTING");
    const {size} = new Blob([data]);
    if (this.#queue.length >= messages || this.#queued + size > bytes) refuse("QuotaExceededError", "queue full");
    // A copy: the caller may write into its own at once.
    this.#queue.push([data?.slice?.() ?? (ArrayBuffer.isView(data) ? structuredClone(data) : `${data}`), size]);
    this.#queued += size;
  }

  close(code, reason = "") {
    if (code !== undefined && code != 1000 && !(code >= 3000 && code < 5000))
      refuse("InvalidAccessError", `invalid code: ${code}`);
    if (new Blob([reason]).size > 123) refuse("SyntaxError", "reason too long");
    if (this.readyState > 1) return;
    this.readyState = 2;
    this.#stop();
    this.#asking?.abort();
    if (!this.#socket) queueMicrotask(() => this.#end({code: 1006}));
    else if (code === undefined) this.#socket.close();
    else this.#socket.close(code, reason);
  }

  #begin(first) {
    if (/^ws/.test(this.#target)) this.#connect(this.#target, null, first);
    else this.#ask();
  }

  async #ask() {
    const {signal} = (this.#asking = new AbortController());
    const timer = this.#world.setTimeout(() => this.#asking.abort(), this.#options.timeout_ms);
    let status = 0, text, after;
    try {
      const answer = await this.#world.fetch(this.#target, {cache: "no-store", ...this.#options.request, signal});
      after = answer.headers.get("retry-after");
      text = await answer.text();
      status = answer.status;
    } catch { /* it cannot be reached */ }
    this.#world.clearTimeout(timer);
    this.#asking = null;
    if (this.readyState) return;
    const next = this.#comeback.answer(status, text, after, this.#world.Date.now());
    if (next.url) this.#connect(next.url, next.backend);
    else this.#lost({code: status, reason: `from the directory: ${status}`, after: next.after});
  }

  #connect(url, backend, first) {
    let socket;
    try {
      socket = this.#socket = new this.#world.WebSocket(url, this.#protocols);
    } catch (error) {
      if (first) throw error;
      return this.#lost({code: 1006, reason: `${error}`});
    }
    Object.assign(this, {url, backend});
    socket.binaryType = this.#binary;
    this.#timer = this.#world.setTimeout(() => this.#drop("not open in time"), this.#options.timeout_ms);
    socket.onclose = (event) => this.#lost(event);
    socket.onmessage = (event) => {
      this.#heard = this.#now();
      if (!this.#options.heartbeat?.isReply?.(event.data)) this.dispatchEvent(new MessageEvent("message", event));
    };
    socket.onopen = () => {
      if (this.readyState) return;
      this.#stop();
      this.readyState = 1;
      this.#comeback.opened((this.#heard = this.#now()));
      this.#watch(this.#options.heartbeat?.interval_ms);
      // Handlers log in or subscribe, before anything that was queued.
      this.dispatchEvent(new Event("open"));
      while (this.#queue.length && socket.readyState == 1) {
        const [data, size] = this.#queue.shift();
        this.#queued -= size;
        socket.send(data);
      }
    };
  }

  // When nothing was heard: ask; when that was done: give up.
  #watch(ms, asked) {
    const {interval_ms, timeout_ms = 10000, message = "ping"} = this.#options.heartbeat ?? {};
    if (!interval_ms) return;
    const due = this.#now() + ms, heard = this.#heard;
    this.#world.clearTimeout(this.#beat);
    this.#beat = this.#world.setTimeout(() => {
      const now = this.#now(), left = this.#heard + interval_ms - now;
      // A timer that is far too late slept with the page: the reply may be waiting behind it.
      if (asked && heard == this.#heard && now < due + timeout_ms) return this.#drop("no reply to the heartbeat");
      if (left > 0) return this.#watch(left);
      this.#watch(timeout_ms, true);
      this.#socket.send(typeof message == "function" ? message() : message);
    }, time(ms));
  }

  #drop(reason) {
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    this.#lost({code: 1006, reason});
  }

  #lost(event) {
    const {code, reason, wasClean} = event, now = this.#now();
    this.#stop();
    this.#socket = null;
    if (this.readyState == 2) return this.#end(event);
    let delay_ms;
    try {
      delay_ms = this.#comeback.wait(now, this.#world.Math.random(), event, this.#page.document?.hidden);
    } finally { // also if the caller's final throws
      if (delay_ms == null) this.#end({code: code < 1000 ? 1006 : code, reason, wasClean}, !wasClean);
    }
    if (delay_ms == null) return;
    this.readyState = 0;
    this.#at = now + delay_ms;
    this.#wait();
    this.dispatchEvent(new CustomEvent("reconnecting", {detail: {code, reason, delay_ms}}));
  }

  #wait() {
    this.#stop();
    if (this.#page.navigator?.onLine === false) return; // "online" goes on
    this.#timer = this.#world.setTimeout(() => this.#begin(), Math.max(this.#at - this.#now(), 0));
  }

  #wake = ({type}) => {
    if (type == "visibilitychange" && this.#page.document.hidden) return;
    if (this.readyState == 1 && this.#heard >= 0) {
      this.#heard = -Infinity;
      this.#watch(0);
    }
    if (this.readyState || this.#socket || this.#asking) return;
    this.#at = this.#comeback.sooner(this.#now(), this.#world.Math.random(), this.#at);
    this.#wait();
  };

  #now() { return this.#world.performance.now(); }

  #stop() {
    this.#world.clearTimeout(this.#timer);
    this.#world.clearTimeout(this.#beat);
  }

  #end(event, failed) {
    this.readyState = 3;
    this.#over.abort();
    if (failed) this.dispatchEvent(new Event("error"));
    this.dispatchEvent(new CloseEvent("close", event));
  }
}

["CONNECTING", "OPEN", "CLOSING", "CLOSED"].forEach((name, value) => {
  for (const place of [ReconnectingSocket, ReconnectingSocket.prototype]) Object.defineProperty(place, name, {value});
});
