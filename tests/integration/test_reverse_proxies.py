"""nginx, HAProxy and Caddy, as configured in deploy/, in front of a server: WebSockets, SSE and the HTTP API."""

from __future__ import annotations

import contextlib
import copy
import http.client
import http.server
import itertools
import json
import threading
from pathlib import Path

import pytest

from tests.harness import event_streams, reverse_proxies, sdk, servers, sockets, waiting


@pytest.mark.parametrize("configure", [reverse_proxies.nginx, reverse_proxies.haproxy, reverse_proxies.caddy])
async def test_events_pass_through_the_documented_proxy(
    uvicorn: servers.Server, configure: reverse_proxies.Configure, tmp_path: Path
) -> None:
    with reverse_proxies.running(configure, tmp_path, [uvicorn.port]) as port:
        server = copy.copy(uvicorn)
        server.port = port
        async with (
            sockets.connect(server) as socket,
            event_streams.listen(server, server.application, "proxied") as stream,
        ):
            await socket.subscribe("proxied")
            await stream.statement()
            sdk.client(server).trigger("proxied", "created", {"by": configure.__name__})
            assert json.loads((await socket.expect("created", "proxied")).data) == {"by": configure.__name__}
            assert (await stream.next()).data["event"] == "created"


class Backend(http.server.BaseHTTPRequestHandler):
    """Answers each request with the port, and closes the connection."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(self.connection.getsockname()[1]).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """No log."""


def answer_through(port: int, method: str) -> bytes:
    with contextlib.closing(http.client.HTTPConnection(servers.HOST, port, timeout=20)) as connection:
        connection.request(method, "/", b"{}" if method == "POST" else None)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()


@pytest.mark.parametrize(
    ("configure", "method"),
    [
        *itertools.product([reverse_proxies.nginx, reverse_proxies.haproxy], ["GET", "POST"]),
        (reverse_proxies.caddy, "GET"),  # it repeats no request with a body
    ],
)
def test_documented_proxy_sends_requests_of_a_stopped_server_to_the_other_one(
    configure: reverse_proxies.Configure, method: str, tmp_path: Path
) -> None:
    """The proxy's check has not noticed the stop yet. HAProxy would answer 503 after 3 s, and Caddy 502."""
    with contextlib.ExitStack() as stack:
        backends = [http.server.ThreadingHTTPServer((servers.HOST, 0), Backend) for _ in range(2)]
        ports = [one.server_address[1] for one in backends]
        for one in backends:
            stack.callback(one.server_close)
            threading.Thread(target=one.serve_forever, daemon=True).start()
            stack.callback(one.shutdown)
        port = stack.enter_context(reverse_proxies.running(configure, tmp_path, ports))
        both = {str(one).encode() for one in ports}
        waiting.until(
            lambda: {answer_through(port, method) for _ in range(8)} == both, 20, "the proxy uses both servers"
        )
        backends[0].shutdown()
        backends[0].server_close()
        assert {answer_through(port, method) for _ in range(12)} == {str(ports[1]).encode()}
