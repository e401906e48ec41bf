// Connects the landing page to this server, shows the state of the connection and what is published to "orders".
"use strict";

const { key, options } = JSON.parse(document.getElementById("connection").textContent);
const shown = document.getElementById("state");
const socket = document.getElementById("socket");

const words = {
  initialized: "Connecting…",
  connecting: "Connecting…",
  connected: "This page is connected",
  unavailable: "No connection. Trying again…",
  failed: "This browser does not support WebSockets",
  disconnected: "Refused by the server",
};

const pusher = new Pusher(key, options);
pusher.connection.bind("state_change", ({ current }) => {
  shown.dataset.state = current;
  shown.textContent = words[current];
  socket.textContent = current === "connected" ? `socket ${pusher.connection.socket_id}` : "";
});

const heard = document.getElementById("heard");
pusher.subscribe("orders").bind("created", (data) => {
  heard.textContent = `orders / created: ${JSON.stringify(data)}`;
});
