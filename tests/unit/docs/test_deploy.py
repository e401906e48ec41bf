"""The files in deploy/ are consistent with the project and each other."""

from __future__ import annotations

import re

import yaml

from fanfare.api import operations
from fanfare.applications import registry
from tests.unit.docs import pages

DEPLOY = pages.ROOT / "deploy"
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
UNIT = (DEPLOY / "fanfare.service").read_text(encoding="utf-8")
IMAGE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
SERVER = "-k uvicorn.workers.UvicornWorker myproject.asgi:application"


def test_unit_and_image_start_the_documented_server() -> None:
    assert SERVER in UNIT
    assert SERVER in IMAGE


def test_nginx_accepts_every_batch_within_the_default_limits() -> None:
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", NGINX)
    assert int(megabytes) * 1024**2 >= operations.batch_body_limit(registry.Limits())


def test_nginx_timeouts_are_longer_than_the_ping_interval() -> None:
    (activity,) = re.findall(r"FANFARE_ACTIVITY_TIMEOUT=(\d+)", (pages.ROOT / ".env.example").read_text("utf-8"))
    pong_s = 30  # pusher-js waits this long for a pong
    for seconds in re.findall(r"proxy_(?:read|send)_timeout (\d+)s;", NGINX):
        assert int(seconds) > int(activity) + pong_s


def test_image_copies_existing_files_that_dockerignore_allows() -> None:
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", IMAGE, re.MULTILINE) for name in line.split()]
    sent = (pages.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    for name in copied:
        assert (pages.ROOT / name).exists()
        assert f"!{name}" in sent


def test_compose_grace_period_is_longer_than_the_graceful_timeout() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["fanfare"]
    (graceful,) = re.findall(r"FANFARE_GRACEFUL_TIMEOUT=(\d+)", (pages.ROOT / ".env.example").read_text("utf-8"))
    assert int(service["stop_grace_period"].removesuffix("s")) > int(graceful) + 5
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
