// Each exported function is a test: test_socket.py runs them one by one. Time is the world's.
import {ReconnectingSocket} from "/client.js";
import {equal, heard, settled, throws, World} from "/world.js";

const DIRECTORY = "http://www.test/connect?room=7";
const found = (node = "n1", more = {}) => ({url: `ws://${node}.test/chat`, backend: node, ...more});

function made(target = "ws://node.test/chat", options = {}, given = {}) {
  const world = new World(given);
  const socket = new ReconnectingSocket(target, options.protocols ?? [], {...options, world});
  return {world, socket, told: heard(socket)};
}

async function opened(options = {}, given = {}) {
  const all = made("ws://node.test/chat", options, given);
  all.world.socket.open();
  all.told.length = 0;
  return all;
}

// Like a WebSocket.

export async function it_has_the_interface() {
  const {world, socket} = made("ws://node.test/chat", {protocols: ["a", "b"]});
  equal(Object.getOwnPropertyNames(WebSocket.prototype).filter((name) => !(name in socket)), []);
  equal(["CONNECTING", "OPEN", "CLOSING", "CLOSED"].map((name) => [ReconnectingSocket[name], socket[name]]), [[0, 0], [1, 1], [2, 2], [3, 3]]);
  equal([socket.url, socket.readyState, socket.protocol, socket.extensions, socket.bufferedAmount], ["ws://node.test/chat", 0, "", "", 0]);
  equal([socket.binaryType, socket.onopen, socket instanceof EventTarget], ["blob", null, true]);
  equal(world.socket.protocols, ["a", "b"]);
  world.socket.open("b");
  Object.assign(world.socket, {extensions: "permessage-deflate", bufferedAmount: 5});
  equal([socket.readyState, socket.protocol, socket.extensions, socket.bufferedAmount], [1, "b", "permessage-deflate", 5]);
}

export async function it_throws_as_a_websocket_does() {
  const options = () => ({world: new World()});
  const never = class extends WebSocket { constructor(...all) { super(...all); super.close(); } };
  for (const url of ["", "http://", "ftp://node.test/", "ws://node.test:99999/", "ws://node.test/#part"]) {
    if (url) throws("SyntaxError", () => new ReconnectingSocket(url, [], options()));
    if (/^ftp|99999/.test(url)) throws("SyntaxError", () => new never(url));
  }
  for (const names of [["a", "a"], [""], "a b", ["a,b"], ["é"], "a/b", ["[a]"]]) {
    throws("SyntaxError", () => new ReconnectingSocket(DIRECTORY, names, options()));
    throws("SyntaxError", () => new never("ws://127.0.0.1:9/", names));
  }
  const {socket, world} = made();
  throws("InvalidStateError", () => socket.send("early"));
  for (const code of [0, 999, 1001, 1005, 1006, 1012, 2999, 5000]) throws("InvalidAccessError", () => socket.close(code));
  throws("SyntaxError", () => socket.close(1000, "é".repeat(62)));
  equal([socket.readyState, world.socket.closed], [0, null]);
}

export async function what_the_browser_forbids_is_thrown_at_once() {
  const world = new World();
  world.forbidden = true;
  throws("SecurityError", () => new ReconnectingSocket("ws://node.test/", [], {world}));
}

export async function addresses_are_relative_to_the_page() {
  const {world, socket} = made("connect?room=7");
  equal([world.question.url, world.question.init.cache, socket.url], ["http://www.test/connect?room=7", "no-store", "http://www.test/connect?room=7"]);
}

export async function messages_are_those_of_the_connection() {
  const {world, socket, told} = await opened();
  const events = [];
  socket.onmessage = (event) => events.push([event instanceof MessageEvent, event.data, event.origin, event.target === socket]);
  world.socket.say("hello");
  equal([events, told], [[[true, "hello", "ws://node.test", true]], ["message hello"]]);
  socket.send("back");
  equal(world.socket.sent, ["back"]);
}

export async function on_handlers_are_replaced_and_taken_away() {
  const {world, socket} = made();
  const told = [];
  socket.onopen = () => told.push("first");
  socket.onopen = function (event) { told.push(`second ${this === socket} ${event.type}`); };
  world.socket.open();
  world.socket.end();
  socket.onopen = null;
  await world.pass(1000);
  world.socket.open();
  equal(told, ["second true open"]);
}

export async function binary_type_goes_to_every_connection() {
  const {world, socket} = made();
  equal(world.socket.binaryType, "blob");
  socket.binaryType = "arraybuffer";
  socket.binaryType = "nonsense";
  equal([socket.binaryType, world.socket.binaryType], ["arraybuffer", "arraybuffer"]);
  world.socket.end();
  await world.pass(1000);
  equal([world.sockets.length, world.socket.binaryType], [2, "arraybuffer"]);
}

export async function closing_an_open_one() {
  const {world, socket, told} = await opened();
  socket.close(4005, "read it all");
  equal([socket.readyState, world.socket.closed], [2, [4005, "read it all"]]);
  socket.send("late");
  socket.close();
  world.socket.end(4005, "read it all");
  await world.pass(1e6);
  equal([socket.readyState, told, world.sockets.length, world.timers.size], [3, ["close 4005 read it all true"], 1, 0]);
}

export async function closing_without_a_code() {
  const {world, socket} = await opened();
  socket.close();
  equal(world.socket.closed, []);
}

export async function closing_while_it_connects() {
  const {world, socket, told} = made();
  socket.close();
  world.socket.end();
  await world.pass(1e6);
  equal([socket.readyState, told, world.sockets.length], [3, ["close 1006  false"], 1]);
}

export async function closing_at_the_moment_when_it_opens() {
  const {world, socket, told} = made();
  socket.close();
  world.socket.open();
  world.socket.end(1005);
  equal([socket.readyState, told], [3, ["close 1005  true"]]);
}

export async function closing_while_it_waits() {
  const {world, socket, told} = await opened({queue: true});
  world.socket.end();
  socket.send("never");
  socket.close();
  equal([socket.readyState, told], [2, ["reconnecting 1006"]]);
  await world.pass(1e6);
  equal([socket.readyState, told.slice(1), world.sockets.length, world.timers.size], [3, ["close 1006  false"], 1, 0]);
}

export async function closing_while_the_directory_is_asked() {
  const {world, socket, told} = made(DIRECTORY);
  socket.close();
  equal(world.question.init.signal.aborted, true);
  await world.pass(1e6);
  equal([socket.readyState, told, world.asked.length, world.sockets.length], [3, ["close 1006  false"], 1, 0]);
}

export async function closing_in_a_handler() {
  const {world, socket, told} = made("ws://node.test/", {queue: true});
  socket.send("never");
  socket.onopen = () => socket.close();
  world.socket.open();
  world.socket.end(1005);
  await world.pass(1e6);
  equal([world.sockets.length, world.socket.sent, told.slice(-1)], [1, [], ["close 1005  true"]]);
  const other = await opened();
  other.socket.onreconnecting = () => other.socket.close();
  other.world.socket.end();
  await other.world.pass(1e6);
  equal([other.world.sockets.length, other.socket.readyState], [1, 3]);
}

// Coming back.

export async function a_lost_connection_comes_back() {
  const {world, socket, told} = await opened();
  let detail;
  socket.onreconnecting = (event) => (detail = event.detail);
  await world.pass(60000);
  world.socket.end();
  equal([socket.readyState, told, detail], [0, ["reconnecting 1006"], {code: 1006, reason: "", delay_ms: 250}]);
  throws("InvalidStateError", () => socket.send("away"));
  await world.pass(249);
  equal(world.sockets.length, 1);
  await world.pass(1);
  equal([world.sockets.length, world.socket.url], [2, "ws://node.test/chat"]);
  world.socket.open();
  equal([socket.readyState, told.slice(1)], [1, ["open"]]);
}

export async function waits_grow_until_a_connection_lasts() {
  const {world} = made("ws://node.test/", {}, {chances: Array(20).fill(1)});
  const waits = [];
  async function end(after) {
    await world.pass(after);
    const before = world.time, sockets = world.sockets.length;
    world.socket.end();
    while (world.sockets.length === sockets) await world.pass(10);
    waits.push(world.time - before);
  }
  await end(0);
  await end(0);
  world.socket.open();
  await end(9990);
  world.socket.open();
  await end(10000);
  await end(0);
  equal(waits, [500, 1000, 2000, 500, 1000]);
}

export async function final_codes_end_it() {
  for (const [code, clean] of [[1000, true], [1008, true], [4001, true], [4999, true]]) {
    const {world, socket, told} = await opened();
    world.socket.end(code, "so it is");
    await world.pass(1e6);
    equal([told, socket.readyState, world.sockets.length], [[`close ${code} so it is ${clean}`], 3, 1]);
  }
  for (const code of [1001, 1005, 1006, 1009, 1011, 1012, 1013, 1014, 3999]) {
    const {world, told} = await opened();
    world.socket.end(code);
    await world.pass(5000);
    equal([told, world.sockets.length], [[`reconnecting ${code}`], 2]);
  }
}

export async function what_is_final_can_be_told() {
  const seen = [];
  const final = (code, reason, usual) => { seen.push([code, reason, usual]); return code === 1006; };
  const {world, socket, told} = await opened({final});
  world.socket.end(4001, "new token");
  await world.pass(1000);
  world.socket.end(1006);
  await world.pass(1e6);
  equal([seen, socket.readyState, told.slice(-2)], [[[4001, "new token", true], [1006, "", false]], 3, ["error", "close 1006  false"]]);
}

export async function a_restart_waits_a_part_of_the_window() {
  const {world, told} = await opened({retry: {window_ms: 4000}}, {chances: [0.75]});
  world.socket.end(1012);
  await world.pass(2999);
  equal(world.sockets.length, 1);
  await world.pass(1);
  equal([world.sockets.length, told], [2, ["reconnecting 1012"]]);
}

export async function a_connection_that_does_not_open_is_given_up() {
  const {world, told} = made("ws://node.test/", {timeout_ms: 3000});
  await world.pass(2999);
  equal(told, []);
  await world.pass(1);
  equal([told, world.socket.closed], [["reconnecting 1006"], []]);
  const [late] = world.sockets;
  await world.pass(250);
  late.open();
  late.say("late");
  late.end();
  equal([told, world.sockets.length], [["reconnecting 1006"], 2]);
}

export async function after_the_end_nothing_listens() {
  const {world, socket} = await opened();
  world.socket.end(1000);
  await world.online(false);
  await world.online(true);
  await world.hide(false);
  await world.pass(1e6);
  equal([socket.readyState, world.sockets.length, world.timers.size], [3, 1, 0]);
  equal(world.signals.map(({aborted}) => aborted), [true, true]);
}

// The directory.

export async function it_is_asked_before_each_connect() {
  const {world, socket, told} = made(DIRECTORY, {request: {headers: {"X-Token": "1"}, cache: "reload"}});
  equal([world.question.url, world.question.init.headers, world.question.init.cache], [DIRECTORY, {"X-Token": "1"}, "reload"]);
  await world.question.answer(200, found("n1"));
  equal([world.socket.url, socket.url, socket.backend, socket.readyState], ["ws://n1.test/chat", "ws://n1.test/chat", "n1", 0]);
  world.socket.open();
  world.socket.end();
  await world.pass(250);
  equal(world.asked.length, 2);
  await world.question.answer(200, found("n2"));
  world.socket.open();
  equal([socket.url, socket.backend, told], ["ws://n2.test/chat", "n2", ["open", "reconnecting 1006", "open"]]);
}

export async function a_node_that_does_not_open_gives_way_to_an_alternative() {
  const {world, socket} = made(DIRECTORY, {retry: {max_ms: 100}});
  const answer = found("n1", {alternatives: ["ws://n2.test/chat", "ws://n3.test/chat"]});
  const went = [];
  for (let turn = 0; turn < 5; turn++) {
    await world.question.answer(200, answer);
    went.push([new URL(world.socket.url).hostname, socket.backend]);
    world.socket.end();
    await world.pass(100);
  }
  equal(went, [["n1.test", "n1"], ["n2.test", null], ["n3.test", null], ["n1.test", "n1"], ["n2.test", null]]);
}

export async function it_goes_through_the_balancer_when_the_directory_is_away() {
  const {world, socket} = made(DIRECTORY, {retry: {fallback: "ws://balancer.test/chat"}});
  await world.question.fail();
  equal([socket.url, socket.backend, world.sockets.length], ["ws://balancer.test/chat", null, 1]);
  world.socket.open();
  world.socket.end();
  await world.pass(250);
  equal(world.asked.length, 2);
  await world.question.answer(502, "<h1>Bad Gateway</h1>");
  equal(socket.url, "ws://balancer.test/chat");
}

export async function the_directory_may_say_where_to_fall_back_to() {
  const {world, socket} = made(DIRECTORY);
  await world.question.answer(200, found("n1", {retry: {fallback: "ws://hinted.test/", base_ms: 100}}));
  world.socket.end();
  await world.pass(50);
  await world.question.fail();
  equal(socket.url, "ws://hinted.test/");
}

export async function without_a_fallback_it_is_asked_again() {
  const {world, told} = made(DIRECTORY);
  await world.question.fail();
  equal(told, ["reconnecting 0"]);
  await world.pass(250);
  equal([world.asked.length, world.sockets.length], [2, 0]);
}

export async function a_directory_that_does_not_answer_is_away() {
  const {world, told} = made(DIRECTORY, {timeout_ms: 2000});
  await world.pass(1999);
  equal(told, []);
  await world.pass(1);
  equal([told, world.asked[0].init.signal.aborted], [["reconnecting 0"], true]);
}

export async function a_time_that_it_asks_for_is_kept() {
  const {world, told} = made(DIRECTORY, {retry: {fallback: "ws://balancer.test/"}}, {chances: [0, 1]});
  await world.question.answer(503, {error: "nothing is up", retry: {after_ms: 2500}}, {"Retry-After": "3"});
  equal([told, world.sockets.length], [["reconnecting 503"], 0]);
  await world.pass(2499);
  equal(world.asked.length, 1);
  await world.pass(1);
  equal(world.asked.length, 2);
  await world.question.answer(503, "", {"Retry-After": "3"});
  await world.pass(3999);
  equal(world.asked.length, 2);
  await world.pass(1);
  equal(world.asked.length, 3);
}

export async function a_directory_that_refuses_is_final() {
  const {world, socket, told} = made(DIRECTORY, {retry: {fallback: "ws://balancer.test/"}});
  await world.question.answer(403, "");
  await world.pass(1e6);
  equal([told, socket.readyState, world.asked.length], [["error", "close 1006 from the directory: 403 false"], 3, 1]);
}

export async function an_address_that_the_browser_forbids_is_a_loss() {
  const {world, told} = made(DIRECTORY);
  world.forbidden = true;
  await world.question.answer(200, found());
  equal(told, ["reconnecting 1006"]);
}

export async function what_is_forbidden_later_is_a_loss() {
  const {world, told} = await opened();
  world.socket.end();
  world.forbidden = true;
  await world.pass(250);
  equal([told, world.sockets.length], [["reconnecting 1006", "reconnecting 1006"], 1]);
  world.forbidden = false;
  await world.pass(1000);
  equal(world.sockets.length, 2);
}

export async function a_final_that_throws_ends_it() {
  const {world, socket, told} = await opened({queue: true, final() { throw new Error("a mistake"); }});
  let thrown;
  try { world.socket.end(); } catch (error) { thrown = error.message; }
  await world.pass(1e6);
  equal([thrown, socket.readyState, told, world.sockets.length], ["a mistake", 3, ["error", "close 1006  false"], 1]);
  socket.send("late");
}

// The queue.

export async function what_is_sent_while_away_goes_in_order_and_once() {
  const {world, socket} = made("ws://node.test/", {queue: true});
  for (const text of ["1", "2", "3"]) socket.send(text);
  equal(socket.bufferedAmount, 3);
  socket.onopen = () => socket.send("hello");
  world.socket.open();
  equal([world.socket.sent, socket.bufferedAmount], [["hello", "1", "2", "3"], 0]);
  socket.send("4");
  world.socket.end();
  socket.send("5");
  await world.pass(250);
  world.socket.open();
  equal(world.sockets.map(({sent}) => sent), [["hello", "1", "2", "3", "4"], ["hello", "5"]]);
}

export async function what_is_left_when_a_connection_ends_early_goes_to_the_next() {
  const {world, socket} = made("ws://node.test/", {queue: true});
  for (const text of ["1", "2", "3"]) socket.send(text);
  const first = world.socket, send = first.send;
  first.send = function (data) { send.call(this, data); if (data === "2") this.readyState = 2; };
  first.open();
  equal([first.sent, socket.bufferedAmount], [["1", "2"], 1]);
  socket.send("4");
  first.end();
  socket.send("5");
  await world.pass(250);
  world.socket.open();
  equal([first.sent, world.socket.sent], [["1", "2"], ["3", "4", "5"]]);
}

export async function a_connection_that_is_closing_takes_nothing() {
  const {world, socket} = await opened({queue: true});
  world.socket.readyState = 2;
  socket.send("for the next");
  world.socket.end(1012);
  await world.pass(2500);
  world.socket.open();
  equal(world.sockets.map(({sent}) => sent), [[], ["for the next"]]);
}

export async function the_queue_is_bounded() {
  const {socket} = made("ws://node.test/", {queue: {messages: 3, bytes: 10}});
  socket.send("é".repeat(4));
  throws("QuotaExceededError", () => socket.send("abc"));
  socket.send("ab");
  socket.send("");
  throws("QuotaExceededError", () => socket.send(""));
  equal(socket.bufferedAmount, 10);
}

export async function the_queue_keeps_copies() {
  const {world, socket} = made("ws://node.test/", {queue: true});
  const bytes = new Uint8Array([1, 2, 3, 4, 5]);
  socket.send(bytes.subarray(1, 3));
  socket.send(bytes.buffer);
  socket.send(new DataView(bytes.buffer, 3, 2));
  socket.send(new Blob(["blob"]));
  socket.send(7);
  socket.send(new URL("http://a.test/"));
  equal(socket.bufferedAmount, 2 + 5 + 2 + 4 + 1 + 14);
  bytes.fill(0);
  world.socket.open();
  const sent = await Promise.all(world.socket.sent.map(async (data) => [...new Uint8Array(await new Blob([data]).arrayBuffer())]));
  const url = [...new TextEncoder().encode("http://a.test/")];
  equal(sent, [[2, 3], [1, 2, 3, 4, 5], [4, 5], [98, 108, 111, 98], [55], url]);
}

// The page.

export async function offline_it_waits_for_the_network() {
  const {world, told} = await opened({}, {chances: [1, 0.5]});
  world.navigator.onLine = false;
  world.socket.end();
  await world.pass(1e6);
  equal([told, world.sockets.length], [["reconnecting 1006"], 1]);
  await world.online(true);
  await world.pass(249);
  equal(world.sockets.length, 1);
  await world.pass(1);
  equal(world.sockets.length, 2);
}

export async function going_offline_stops_a_wait_that_has_begun() {
  const {world} = await opened();
  world.socket.end();
  await world.online(false);
  await world.pass(1e6);
  equal(world.sockets.length, 1);
  await world.online(true);
  await world.pass(500);
  equal(world.sockets.length, 2);
}

export async function hidden_it_takes_its_time_and_comes_when_looked_at() {
  const {world} = await opened({}, {chances: [1, 0.4]});
  world.document.hidden = true;
  world.socket.end();
  await world.pass(29999);
  equal(world.sockets.length, 1);
  await world.pass(1);
  equal(world.sockets.length, 2);
  const other = await opened({}, {chances: [1, 0.4]});
  other.world.document.hidden = true;
  other.world.socket.end();
  await other.world.pass(5000);
  await other.world.hide(false);
  await other.world.pass(199);
  equal(other.world.sockets.length, 1);
  await other.world.pass(1);
  equal(other.world.sockets.length, 2);
}

export async function turning_away_from_it_is_no_reason_to_hurry() {
  const {world} = await opened({}, {chances: [1, 0]});
  world.document.hidden = true;
  world.socket.end();
  await world.hide(true);
  await world.pass(29999);
  equal(world.sockets.length, 1);
}

export async function hope_does_not_disturb_what_is_under_way() {
  const one = made();
  const two = made(DIRECTORY);
  for (const {world} of [one, two]) {
    await world.online(true);
    await world.hide(false);
    await world.pass(5000);
  }
  equal([one.world.sockets.length, one.told, two.world.asked.length, two.told], [1, [], 1, []]);
}

export async function looking_at_it_does_not_break_a_promise() {
  const {world} = made(DIRECTORY);
  await world.question.answer(503, "", {"Retry-After": "20"});
  await world.hide(false);
  await world.online(true);
  await world.pass(19999);
  equal(world.asked.length, 1);
  await world.pass(1);
  equal(world.asked.length, 2);
}

export async function the_page_can_be_left_out_of_it() {
  const {world} = await opened({page: false}, {chances: [1]});
  world.document.hidden = true;
  world.navigator.onLine = false;
  world.socket.end();
  await world.pass(500);
  equal(world.sockets.length, 2);
}

// The heartbeat.

const HEART = {heartbeat: {interval_ms: 20000, timeout_ms: 5000, isReply: (data) => data === "pong"}};

export async function silence_is_asked_about() {
  const {world, told} = await opened(HEART);
  await world.pass(19999);
  equal(world.socket.sent, []);
  await world.pass(1);
  equal(world.socket.sent, ["ping"]);
  world.socket.say("pong");
  await world.pass(5000);
  equal(told, []);
  await world.pass(15000);
  equal(world.socket.sent, ["ping", "ping"]);
  await world.pass(4999);
  equal(told, []);
  await world.pass(1);
  equal([told, world.socket.closed], [["reconnecting 1006"], []]);
  await world.pass(250);
  world.socket.open();
  equal([told, world.sockets.length], [["reconnecting 1006", "open"], 2]);
}

export async function any_message_is_a_sign_of_life() {
  const {world, told} = await opened({heartbeat: {...HEART.heartbeat, message: () => "are you there"}});
  for (let turn = 0; turn < 5; turn++) {
    await world.pass(15000);
    world.socket.say("news");
  }
  equal(world.socket.sent, []);
  await world.pass(20000);
  world.socket.say("more");
  await world.pass(10000);
  equal([world.socket.sent, new Set(told).size], [["are you there"], 2]);
}

export async function a_page_that_slept_asks_again_before_it_gives_up() {
  const {world, told} = await opened(HEART);
  await world.pass(20000);
  await world.sleep(3600000);
  equal([world.socket.sent, told], [["ping", "ping"], []]);
  world.socket.say("pong");
  await world.pass(15000);
  equal(told, []);
}

export async function a_page_that_is_looked_at_asks_at_once() {
  const {world, told} = await opened(HEART);
  await world.pass(1000);
  await world.hide(false);
  await world.pass(0);
  equal(world.socket.sent, ["ping"]);
  await world.pass(5000);
  equal(told, ["reconnecting 1006"]);
}

export async function looking_at_it_again_and_again_does_not_put_the_end_off() {
  const {world, told} = await opened(HEART);
  for (let turn = 0; turn < 2; turn++) {
    await world.hide(false);
    await world.pass(2000);
  }
  equal([world.socket.sent, told], [["ping"], []]);
  await world.pass(1000);
  equal(told, ["reconnecting 1006"]);
  const other = await opened(HEART);
  await other.world.hide(false);
  await other.world.pass(0);
  other.world.socket.say("pong");
  await other.world.hide(false);
  await other.world.pass(0);
  equal(other.world.socket.sent, ["ping", "ping"]);
}

export async function a_message_that_cannot_be_made_is_no_reply() {
  const {world, told} = await opened({heartbeat: {...HEART.heartbeat, message() { throw new Error("a mistake"); }}});
  let thrown;
  try { await world.pass(20000); } catch (error) { thrown = error.message; }
  await world.pass(5000);
  equal([thrown, told], ["a mistake", ["reconnecting 1006"]]);
}

export async function closing_in_the_heartbeat_leaves_no_timer() {
  const all = await opened({heartbeat: {...HEART.heartbeat, message() { all.socket.close(); return "bye"; }}});
  all.world.socket.send = () => {}; // one that is closing takes all and sends nothing
  await all.world.pass(20000);
  equal([all.socket.readyState, all.world.timers.size], [2, 0]);
}

export async function times_without_end_are_no_times_of_nothing() {
  for (const forever of [Infinity, 2 ** 31, undefined]) {
    const {world, told} = made(DIRECTORY, {timeout_ms: forever});
    equal([...world.timers.keys()].map(({at}) => at), [forever ? 3600000 : 10000]);
    await world.question.answer(200, found());
    equal([...world.timers.keys()].map(({at}) => at), [forever ? 3600000 : 10000]);
    equal(told, []);
  }
  const {world, told} = await opened({heartbeat: {interval_ms: Infinity}});
  await world.pass(3 * 3600000);
  equal([world.timers.size, world.socket.sent, told], [1, [], []]);
  equal([...world.timers.keys()].map(({at}) => at), [4 * 3600000]);
}

export async function without_a_heartbeat_nothing_is_sent() {
  const {world} = await opened();
  await world.hide(false);
  await world.pass(1e7);
  equal([world.socket.sent, world.timers.size], [[], 0]);
}
