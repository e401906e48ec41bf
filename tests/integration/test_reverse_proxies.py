"""nginx, HAProxy and Caddy with the configurations of deploy/, in front of a server: WebSockets, SSE and the HTTP API.

Each configuration is changed only in its addresses, and without TLS.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import event_streams, parts, sdk, servers, sockets, waiting
from tests.unit.docs import pages

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {deployed}
}}
"""

Configured = tuple[str, str, list[str]]  # the name of the file, its text, the command without the file
Configure = Callable[[Path, int, int], Configured]


def nginx(folder: Path, port: int, upstream: int) -> Configured:
    deployed = changed(
        "nginx.conf",
        {
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{upstream};",
            "    listen 80;\n    listen [::]:80;\n": f"    listen 127.0.0.1:{servers.free_port()};\n",
            "    listen 443 ssl;\n    listen [::]:443 ssl;\n": f"    listen 127.0.0.1:{port};\n",
            "/var/log/nginx/fanfare.log": str(folder / "access"),
        },
    )
    deployed = "\n".join(line for line in deployed.splitlines() if not line.startswith("    ssl_"))
    text = NGINX.format(folder=folder, deployed=deployed)
    return "nginx.conf", text, [parts.executable("nginx"), "-p", str(folder), "-c"]


def haproxy(folder: Path, port: int, upstream: int) -> Configured:
    text = changed(
        "haproxy.cfg",
        {
            "maxconn 100000": "maxconn 256",
            "    bind :80\n": f"    bind 127.0.0.1:{port}\n",
            "    bind :443 ssl crt /etc/haproxy/certs/ alpn h2,http/1.1\n": "",
            "    http-request redirect scheme https unless { ssl_fc }\n": "",
            "    server one 10.0.0.11:8000\n    server two 10.0.0.12:8000\n": f"    server one 127.0.0.1:{upstream}\n",
        },
    )
    return "haproxy.cfg", text, [parts.executable("haproxy"), "-f"]


def caddy(folder: Path, port: int, upstream: int) -> Configured:
    text = changed(
        "Caddyfile",
        {"realtime.example.com {": f"http://127.0.0.1:{port} {{", "127.0.0.1:8000": f"127.0.0.1:{upstream}"},
    )
    top = f"{{\n\tadmin off\n\tstorage file_system {folder}/storage\n}}\n"
    return "Caddyfile", top + text, [parts.executable("caddy"), "run", "--adapter", "caddyfile", "--config"]


def changed(name: str, replaced: dict[str, str]) -> str:
    text = (pages.ROOT / "deploy" / name).read_text(encoding="utf-8")
    for line, other in replaced.items():
        assert line in text, line
        text = text.replace(line, other)
    return text


@contextlib.contextmanager
def before(server: servers.Server, configure: Configure, folder: Path) -> Iterator[servers.Server]:
    """The server as its clients see it through the proxy."""
    seen = copy.copy(server)
    seen.port = servers.free_port()
    name, text, command = configure(folder, seen.port, server.port)
    (folder / name).write_text(text, encoding="utf-8")
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*command, str(folder / name)],
            stdout=output,
            stderr=output,
            env={**os.environ, "HOME": str(folder)},
        )
    try:
        waiting.until(seen.is_ready, 20, "the server is ready through the proxy")
        yield seen
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("configure", [nginx, haproxy, caddy])
async def test_events_pass_through_the_documented_proxy(
    uvicorn: servers.Server, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")  # where Debian has them
    with before(uvicorn, configure, tmp_path) as server:
        async with (
            sockets.connect(server) as socket,
            event_streams.listen(server, server.application, "proxied") as stream,
        ):
            await socket.subscribe("proxied")
            await stream.statement()
            sdk.client(server).trigger("proxied", "created", {"by": configure.__name__})
            assert json.loads((await socket.expect("created", "proxied")).data) == {"by": configure.__name__}
            assert (await stream.next()).data["event"] == "created"
