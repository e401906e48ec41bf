"""nginx, HAProxy and Caddy with the configurations of deploy/, changed only in their addresses, and without TLS."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.harness import deployments, parts, servers, waiting

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {deployed}
}}
"""
HAPROXY_CONNECTIONS = 8_000  # each takes two open files

Configured = tuple[str, str, list[str]]  # the name of the file, its text, the command without the file
Configure = Callable[[Path, int, Sequence[int]], Configured]


def nginx(folder: Path, port: int, upstreams: Sequence[int]) -> Configured:
    deployed = changed(
        "nginx.conf",
        {
            "server 127.0.0.1:8000;": "".join(f"server 127.0.0.1:{one};" for one in upstreams),
            "    listen 80;\n    listen [::]:80;\n": f"    listen 127.0.0.1:{servers.free_port()};\n",
            "    listen 443 ssl;\n    listen [::]:443 ssl;\n": f"    listen 127.0.0.1:{port};\n",
            "/var/log/nginx/fanfare.log": str(folder / "access"),
        },
    )
    deployed = "\n".join(line for line in deployed.splitlines() if not line.startswith("    ssl_"))
    text = NGINX.format(folder=folder, deployed=deployed)
    return "nginx.conf", text, [program("nginx"), "-p", str(folder), "-c"]


def haproxy(folder: Path, port: int, upstreams: Sequence[int]) -> Configured:
    text = changed(
        "haproxy.cfg",
        {
            "maxconn 100000": f"maxconn {HAPROXY_CONNECTIONS}",
            "    bind :80\n": f"    bind 127.0.0.1:{port}\n",
            "    bind :443 ssl crt /etc/haproxy/certs/ alpn h2,http/1.1\n": "",
            "    http-request redirect scheme https unless { ssl_fc }\n": "",
            "    server one 10.0.0.11:8000\n    server two 10.0.0.12:8000\n": "".join(
                f"    server number{number} 127.0.0.1:{one}\n" for number, one in enumerate(upstreams)
            ),
        },
    )
    return "haproxy.cfg", text, [program("haproxy"), "-f"]


def caddy(folder: Path, port: int, upstreams: Sequence[int]) -> Configured:
    text = changed(
        "Caddyfile",
        {
            "realtime.example.com {": f"http://127.0.0.1:{port} {{",
            "127.0.0.1:8000": " ".join(f"127.0.0.1:{one}" for one in upstreams),
        },
    )
    top = f"{{\n\tadmin off\n\tstorage file_system {folder}/storage\n}}\n"
    return "Caddyfile", top + text, [program("caddy"), "run", "--adapter", "caddyfile", "--config"]


def program(name: str) -> str:
    """The path of a proxy, which Debian has outside of a user's PATH."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") or parts.absent(f"{name} is not installed")


def changed(name: str, replaced: dict[str, str]) -> str:
    text = (deployments.REPOSITORY / "deploy" / name).read_text(encoding="utf-8")
    for line, other in replaced.items():
        assert line in text, line
        text = text.replace(line, other)
    return text


@contextlib.contextmanager
def running(configure: Configure, folder: Path, upstreams: Sequence[int]) -> Iterator[int]:
    """A proxy in front of the servers with these ports. Yields its own port once a server is ready through it."""
    port = servers.free_port()
    name, text, command = configure(folder, port, upstreams)
    (folder / name).write_text(text, encoding="utf-8")
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*command, str(folder / name)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "HOME": str(folder)},
        )
    try:
        waiting.until(lambda: _passes(port), 20, "a server is ready through the proxy")
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _passes(port: int) -> bool:
    connection = http.client.HTTPConnection(servers.HOST, port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
