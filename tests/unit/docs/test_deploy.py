"""The files of deploy/ agree with the project and with each other."""

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


def test_nginx_takes_every_batch_that_the_default_limits_allow() -> None:
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", NGINX)
    assert int(megabytes) * 1024**2 >= operations.batch_body_limit(registry.Limits())


def test_nginx_waits_longer_than_a_quiet_client() -> None:
    (activity,) = re.findall(r"FANFARE_ACTIVITY_TIMEOUT=(\d+)", (pages.ROOT / ".env.example").read_text("utf-8"))
    pong_s = 30  # that pusher-js waits for the answer to its ping
    for seconds in re.findall(r"proxy_(?:read|send)_timeout (\d+)s;", NGINX):
        assert int(seconds) > int(activity) + pong_s


def test_the_image_copies_what_is_there_and_what_the_builder_is_sent() -> None:
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", IMAGE, re.MULTILINE) for name in line.split()]
    sent = (pages.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    for name in copied:
        assert (pages.ROOT / name).exists()
        assert f"!{name}" in sent


def test_compose_leaves_the_workers_time_to_stop() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["fanfare"]
    (graceful,) = re.findall(r"FANFARE_GRACEFUL_TIMEOUT=(\d+)", (pages.ROOT / ".env.example").read_text("utf-8"))
    assert int(service["stop_grace_period"].removesuffix("s")) > int(graceful) + 5
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
