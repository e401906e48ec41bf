"""A real nginx and a real HAProxy write their logs in the formats of deploy/nginx.conf and deploy/haproxy.cfg."""

from __future__ import annotations

import http.client
import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import parts, servers, waiting
from tests.unit.docs import pages

DEPLOYED = (pages.ROOT / "deploy/nginx.conf").read_text(encoding="utf-8")
PATIENCE = 20.0  # seconds
TOKEN = "a-token-of-a-page-0123456789"

CONFIGURATION = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 64; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {deployed}
    server {{ listen 127.0.0.1:{port}; access_log {folder}/access fanfare; location / {{ return 200; }} }}
}}
"""


@pytest.fixture
def nginx(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")  # where Debian has it
    return parts.executable("nginx")


def ask(port: int, path: str) -> int:
    connection = http.client.HTTPConnection(servers.HOST, port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_log_of_nginx_has_no_signature_and_no_resume_token(nginx: str, tmp_path: Path) -> None:
    port = servers.free_port()
    http_part, _, _ = DEPLOYED.partition("\nserver {")
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=tmp_path, deployed=http_part, port=port), encoding="utf-8")
    process = subprocess.Popen([nginx, "-p", str(tmp_path), "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        wanted = (f"/s/{TOKEN}/app/key?protocol=7", f"/prefix/s/{TOKEN}/app/key", "/apps/1/events?auth_signature=abc")

        waiting.until(lambda: ask(port, "/") == 200, PATIENCE, "nginx answers")
        assert [ask(port, path) for path in wanted] == [200] * 3
        log = waiting.until(
            lambda: text if (text := (tmp_path / "access").read_text()).count("\n") >= 4 else "", PATIENCE, "the log"
        )
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert TOKEN not in log
    assert "auth_signature" not in log
    assert '"GET /s/***/app/key HTTP/1.1" 200' in log
    assert '"GET /prefix/s/***/app/key HTTP/1.1" 200' in log


def test_log_of_haproxy_has_no_signature_and_no_resume_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    haproxy = parts.executable("haproxy")
    port = servers.free_port()
    deployed = (pages.ROOT / "deploy/haproxy.cfg").read_text(encoding="utf-8")
    top, _, _ = deployed.partition("\nbackend ")
    replaced = {
        "maxconn 100000": "maxconn 100",
        "    bind :80\n": f"    bind 127.0.0.1:{port}\n",
        "    bind :443 ssl crt /etc/haproxy/certs/ alpn h2,http/1.1\n": "",
        "redirect scheme https unless { ssl_fc }": "return status 200",
        "    default_backend fanfare\n": "",
    }
    for line, other in replaced.items():
        assert line in top, line
        top = top.replace(line, other)
    (tmp_path / "haproxy.cfg").write_text(top, encoding="utf-8")
    output = tmp_path / "log"
    with output.open("wb") as file:
        process = subprocess.Popen([haproxy, "-f", str(tmp_path / "haproxy.cfg")], stdout=file, stderr=file)
    try:
        waiting.until(lambda: ask(port, "/") == 200, PATIENCE, "HAProxy answers")
        for path in (
            f"/s/{TOKEN}/app/key?protocol=7",
            f"/prefix/s/{TOKEN}/app/key",
            "/apps/1/events?auth_signature=abc",
        ):
            assert ask(port, path) == 200
        log = waiting.until(lambda: text if "/apps/1/" in (text := output.read_text()) else "", PATIENCE, "the log")
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert TOKEN not in log
    assert "auth_signature" not in log
    assert " GET /s/***/app/key 200" in log
    assert " GET /prefix/s/***/app/key 200" in log
