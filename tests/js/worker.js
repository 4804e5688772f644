// A worker: it has no page, and is online. Nobody is there to connect to.
import {ReconnectingSocket} from "/client.js";

const socket = new ReconnectingSocket("/connect", [], {retry: {fallback: "ws://nobody.test/", base_ms: 10}, queue: true});
socket.send("never");
let losses = 0;
socket.onreconnecting = () => {
  if (++losses === 3) socket.close();
};
socket.onclose = ({code}) => postMessage([losses, code, socket.url, socket.readyState]);
