// A world for ReconnectingSocket in which time, chance, network and page do what a test says.

export class World {
  constructor({chances = [], location = "http://www.test/page"} = {}) {
    this.time = 0;
    this.sockets = [];
    this.asked = [];
    this.signals = [];
    this.timers = new Map();
    this.events = new EventTarget();
    this.performance = {now: () => this.time};
    this.Date = {now: () => this.time};
    this.Math = {random: () => chances.shift() ?? 0.5};
    this.navigator = {onLine: true};
    this.document = Object.assign(new EventTarget(), {hidden: false});
    this.location = {href: location};
    const world = this;
    this.WebSocket = class {
      constructor(url, protocols) {
        if (world.forbidden) throw new DOMException("insecure", "SecurityError");
        Object.assign(this, {url, protocols, readyState: 0, sent: [], closed: null, at: world.time});
        Object.assign(this, {protocol: "", extensions: "", bufferedAmount: 0});
        world.sockets.push(this);
      }
      send(data) {
        if (this.readyState !== 1) throw new Error("sent to a socket that is not open");
        this.sent.push(data);
      }
      close(...how) {
        this.closed = how;
        this.readyState = 2;
      }
      // What the server and the network do:
      open(protocol = "") {
        Object.assign(this, {protocol, readyState: 1});
        this.onopen?.({});
      }
      say(data) {
        this.onmessage?.(new MessageEvent("message", {data, origin: "ws://node.test"}));
      }
      end(code = 1006, reason = "") {
        this.readyState = 3;
        this.onclose?.(new CloseEvent("close", {code, reason, wasClean: code !== 1006}));
      }
    };
  }

  get socket() { return this.sockets.at(-1); }

  setTimeout(call, ms) {
    const timer = {call, at: this.time + ms};
    this.timers.set(timer, timer);
    return timer;
  }
  clearTimeout(timer) { this.timers.delete(timer); }

  addEventListener(type, call, options) {
    this.signals.push(options.signal);
    this.events.addEventListener(type, call, options);
  }

  fetch(url, init) {
    return new Promise((resolve, reject) => {
      const body = (value) => (typeof value === "string" ? value : JSON.stringify(value));
      const answer = (status, value, headers = {}) => {
        resolve(new Response(status === 204 ? null : body(value), {status, headers}));
        return settled();
      };
      const fail = () => { reject(new TypeError("Failed to fetch")); return settled(); };
      init.signal.addEventListener("abort", fail);
      this.asked.push({url, init, answer, fail, at: this.time});
    });
  }

  get question() { return this.asked.at(-1); }

  // Let time pass: every timer at its moment.
  async pass(ms) {
    const end = this.time + ms;
    for (;;) {
      await settled();
      const next = [...this.timers.keys()].filter(({at}) => at <= end).sort((one, two) => one.at - two.at)[0];
      if (!next) break;
      this.timers.delete(next);
      this.time = Math.max(this.time, next.at);
      next.call();
    }
    this.time = end;
    await settled();
  }

  // Time passes while everything sleeps: timers are late.
  async sleep(ms) {
    this.time += ms;
    await this.pass(0);
  }

  async online(yes) {
    this.navigator.onLine = yes;
    this.events.dispatchEvent(new Event(yes ? "online" : "offline"));
    await settled();
  }
  async hide(yes) {
    this.document.hidden = yes;
    this.document.dispatchEvent(new Event("visibilitychange"));
    await settled();
  }
}

// Let everything that was promised happen: a task of the real loop comes behind all microtasks, and some for `fetch`.
export async function settled() {
  for (let turn = 0; turn < 3; turn++) await new Promise((done) => { const {port1, port2} = new MessageChannel(); port2.onmessage = done; port1.postMessage(0); });
}

export function equal(told, expected) {
  const [one, two] = [JSON.stringify(told), JSON.stringify(expected)];
  if (one !== two) throw new Error(`${one} is not ${two}`);
}

export function throws(kind, call) {
  try { call(); } catch (error) { return equal([error instanceof DOMException, error.name], [true, kind]); }
  throw new Error(`no ${kind}`);
}

// The events of a socket, as a list of texts that grows.
export function heard(socket) {
  const told = [];
  for (const type of ["open", "message", "error", "close", "reconnecting"])
    socket.addEventListener(type, (event) => {
      const more = {message: event.data, close: `${event.code} ${event.reason} ${event.wasClean}`, reconnecting: event.detail?.code}[type];
      told.push(more === undefined ? type : `${type} ${more}`);
    });
  return told;
}
