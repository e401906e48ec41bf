"""`/metrics`: the figures of all workers, whichever worker answers."""

from __future__ import annotations

import asyncio
import contextlib
import http.client

from tests.harness import calls, servers, sockets, waiting


def scrape(server: servers.Server, **headers: str) -> tuple[int, dict[str, float]]:
    connection = http.client.HTTPConnection(servers.HOST, server.port, timeout=15)
    try:
        connection.request(
            "GET", "/metrics", headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        response = connection.getresponse()
        lines = response.read().decode().splitlines()
    finally:
        connection.close()
    if response.status != 200:
        return response.status, {}
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return 200, {name: float(value) for name, _, value in samples}


async def test_connections_are_the_sum_over_four_workers(four_workers: servers.Server) -> None:
    async with contextlib.AsyncExitStack() as stack:
        _, before = await asyncio.to_thread(scrape, four_workers)
        spread = await sockets.spread(four_workers, stack, each=2)
        opened = sum(len(found) for found in spread.values())
        for found in spread.values():
            await found[0].subscribe("metrics")
        expected = before["fanfare_connections"] + opened

        figures: dict[str, float] = {}

        def are_of_all_workers() -> bool:
            """Scrapes within half a second share one collection, and a worker soon knows those that have started."""
            figures.update(scrape(four_workers)[1])
            names = ("fanfare_connections", "fanfare_workers", "fanfare_workers_expected")
            return tuple(figures[name] for name in names) == (expected, 4, 4)

        await asyncio.to_thread(waiting.until, are_of_all_workers, 5.0, "the figures of all workers")
        published = figures["fanfare_events_published_total"]
        await asyncio.to_thread(calls.publish, four_workers, "metrics", "e", "{}")
        await asyncio.to_thread(
            waiting.until,
            lambda: scrape(four_workers)[1]["fanfare_events_published_total"] > published,
            5.0,
            "the published event is counted",
        )


def test_request_through_a_proxy_gets_the_projects_page(server: servers.Server) -> None:
    assert scrape(server)[0] == 200
    assert scrape(server, X_Forwarded_For="203.0.113.9")[0] == 404
