"""The project's application with two more endpoints, at which its workers publish from Python for the benchmark.

    GET /load/publish?threads=4&together=1&begin=T&end=T   publish in a loop, in each of `threads` threads
    GET /load/pace?count=100&every=0.01                    publish at intervals, with the time of the call as data

`together`: the number of calls in each `transaction.atomic()`; 1 means no transaction.

Times are CLOCK_MONOTONIC, which all processes of a machine share. Threads, because Django runs views in threads.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from django.db import connection, transaction

import fanfare
from myproject.asgi import application as project
from tests.load import events

PREFIX = "/load/"
CLOCK = time.CLOCK_MONOTONIC


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
        await project(scope, receive, send)
        return
    query = {name: float(value) for name, value in parse_qsl(scope["query_string"].decode())}
    published = await asyncio.to_thread(ENDPOINTS[scope["path"].removeprefix(PREFIX)], **query)
    body = json.dumps({"pid": os.getpid(), "published": published}).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _publish(threads: float, together: float, begin: float, end: float) -> int:
    counts = [0] * int(threads)
    data = events.data(0)

    def once() -> None:
        fanfare.publish(events.CHANNEL, events.NAME, data)

    def group() -> None:
        with transaction.atomic():
            for _ in range(int(together)):
                once()

    step = once if together == 1 else group

    def run(number: int) -> None:
        time.sleep(max(0.0, begin - time.clock_gettime(CLOCK)))
        try:
            while time.clock_gettime(CLOCK) < end:
                step()
                counts[number] += int(together)
        finally:
            connection.close()  # as Django does at the end of a request

    running = [threading.Thread(target=run, args=(number,)) for number in range(len(counts))]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return sum(counts)


def _pace(count: float, every: float) -> int:
    due = time.clock_gettime(CLOCK)
    for _ in range(int(count)):
        due += every
        time.sleep(max(0.0, due - time.clock_gettime(CLOCK)))
        fanfare.publish(events.CHANNEL, events.NAME, {"at": time.clock_gettime(CLOCK)})
    return int(count)


ENDPOINTS: dict[str, Callable[..., int]] = {"publish": _publish, "pace": _pace}
