// Compiled by test_package.py: how the types are used, and what they refuse.
import {Comeback, DEFAULTS, isFinal, retryAfter, ReconnectingSocket} from "pybalancer-client";
import type {Options, Reconnecting} from "pybalancer-client";

const options: Options = {
  retry: {base_ms: 200, fallback: "wss://balancer.example.com/chat"},
  queue: {messages: 10, bytes: 1000},
  heartbeat: {interval_ms: 20000, message: () => "ping", isReply: (data) => data === "pong"},
  request: {credentials: "include"},
  final: (code, reason, usual) => (code === 4001 && reason !== "" ? false : usual),
};

// Wherever a WebSocket is wanted it can take its place.
const socket: WebSocket = new ReconnectingSocket("/connect?room=7", ["chat"], options);
socket.binaryType = "arraybuffer";
socket.onmessage = (event) => socket.send(event.data as string);
socket.addEventListener("close", ({code, reason, wasClean}) => console.log(code, reason, wasClean));

const own = new ReconnectingSocket(new URL("wss://example.com/"));
own.addEventListener("reconnecting", ({detail}) => console.log(detail.delay_ms.toFixed()));
own.onreconnecting = (event: CustomEvent<Reconnecting>) => console.log(event.detail.code);
const backend: string | null = own.backend;
const open: boolean = own.readyState === ReconnectingSocket.OPEN;
own.send(new Uint8Array([1, 2, 3]));
own.close(4000, "done");

const comeback = new Comeback("https://example.com/connect", {...DEFAULTS, max_ms: 5000});
const next = comeback.answer(200, "{}", null, Date.now());
const where: string = "url" in next ? next.url : "nowhere";
const wait: number | null = comeback.wait(0, Math.random(), {code: 1006});
console.log(backend, open, where, wait, isFinal(1008), retryAfter("7", 0));

// @ts-expect-error: the address is read-only
own.url = "wss://other.example.com/";
// @ts-expect-error: times are numbers
new ReconnectingSocket("/connect", [], {retry: {base_ms: "200"}});
// @ts-expect-error: no such option
new ReconnectingSocket("/connect", [], {retries: 3});
// @ts-expect-error: an object is no message
own.send({});
