"""nginx with the nchan module from the system's packages: one worker, no access log, messages in memory."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.harness import servers
from tests.load import connections, events, processes, publishers, subjects
from tests.load.subjects import pusher

MODULES = (Path("/usr/lib/nginx/modules"), Path("/usr/share/nginx/modules"), Path("/usr/lib64/nginx/modules"))
MODULE = "ngx_nchan_module.so"

# Messages are kept only until they are delivered: old ones are not requested, and would count as memory.
CONFIGURATION = """\
load_module {module};
user {user};
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/pid;
error_log {folder}/errors;
events {{ worker_connections {files}; multi_accept on; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    nchan_shared_memory_size 256M;
    server {{
        listen {host}:{port} backlog=1024;
        location = /sub {{
            nchan_subscriber websocket;
            nchan_channel_id load;
            nchan_subscriber_first_message newest;
        }}
        location ~ ^/sub/(\\w+)$ {{
            nchan_subscriber websocket;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
        }}
        location ~ ^/pub/(\\w+)$ {{
            nchan_publisher http;
            nchan_channel_id $1;
            nchan_message_buffer_length 256;
            nchan_message_timeout 10s;
        }}
        location = /pub {{
            nchan_publisher http;
            nchan_channel_id load;
            nchan_message_buffer_length 256;
            nchan_message_timeout 10s;
        }}
    }}
}}
"""
FILES = 16_384


class Nchan:
    name = subjects.NCHAN
    one_frame_each = True

    def absent(self) -> str | None:
        if shutil.which("nginx") is None or _module() is None:
            return "the packages nginx and libnginx-mod-nchan are not installed."
        return None

    def versions(self) -> str:
        package = processes.output("dpkg-query", "--show", "--showformat", "${Version}", "libnginx-mod-nchan")
        server = re.search(r"[\d.]+", processes.output("nginx", "-v"))
        return f"nchan {package or 'of an unknown version'}, nginx {server.group() if server else 'unknown'}"

    @contextlib.contextmanager
    def running(self, folder: Path, core: int) -> Iterator[Running]:
        port = servers.free_port()
        file = folder / "nginx.conf"
        user = "root" if os.getuid() == 0 else "nobody"  # nginx ignores it without root
        file.write_text(
            CONFIGURATION.format(module=_module(), user=user, files=FILES, folder=folder, host=servers.HOST, port=port)
        )
        command = [shutil.which("nginx") or "nginx", "-c", str(file), "-e", str(folder / "errors")]
        with processes.running(command, port, os.environ, core=core, log=folder / "log") as process:
            yield Running(processes.only_child(process))


class Running(subjects.Silent):
    target = "/sub"

    def room_target(self, room: str) -> str:
        return f"/sub/{room}"

    def joining_room(self, room: str) -> connections.Dialogue:
        return connections.silent()

    def room_request(self, room: str, number: int) -> bytes:
        return publishers.post(f"/pub/{room}", events.body(number))

    def ways(self) -> Mapping[str, subjects.Way]:
        def request(first: int, count: int) -> bytes:
            return publishers.post("/pub", events.body(first))

        return {"POST, 16 connections": subjects.Way(lambda: publishers.Http(self.port, request, 16), pusher.WINDOW)}


def _module() -> Path | None:
    return next((folder / MODULE for folder in MODULES if (folder / MODULE).exists()), None)
