// node relay.mjs ws|socket.io PORT: a server as its tutorial has it. What is posted to /publish goes to every client.
//
// Nothing is parsed and nothing is encoded besides the frame: the least that a server can do. No compression, WebSocket
// only, and no pings, which the client of this benchmark would count as events.

import { createServer } from "node:http";

const relays = {
  async ws(server) {
    const { WebSocket, WebSocketServer } = await import("ws");
    const sockets = new WebSocketServer({ server, perMessageDeflate: false });
    return (body) => {
      for (const client of sockets.clients) {
        if (client.readyState === WebSocket.OPEN) client.send(body, { binary: false });
      }
    };
  },

  async "socket.io"(server) {
    const { Server } = await import("socket.io");
    const sockets = new Server(server, { transports: ["websocket"], serveClient: false, pingInterval: 3_600_000 });
    return (body) => sockets.emit("tick", body.toString());
  },
};

const [kind, port] = process.argv.slice(2);
const server = createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    publish(Buffer.concat(parts));
    response.end("{}");
  });
});
server.keepAliveTimeout = 0; // a publisher that pauses keeps its connections
const publish = await relays[kind](server);
server.listen(Number(port), "127.0.0.1");
