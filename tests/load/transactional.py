"""`python -m tests.load.transactional`: what publish() in a transaction costs on PostgreSQL.

Each transaction inserts one row of a table and publishes events: without an option (sent after the commit), through the
outbox, and with FANFARE_TRANSACTIONAL_PUBLISH. Prints milliseconds for each transaction, the median of rounds that
alternate between the three ways.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

WAYS = {"after the commit": {}, "outbox": {"OUTBOX": True}, "transactional": {"TRANSACTIONAL_PUBLISH": True}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load.transactional", description=__doc__)
    parser.add_argument("--transactions", type=int, default=200, help="in each round (200)")
    parser.add_argument("--rounds", type=int, default=5, help="of each way (5)")
    parser.add_argument("--events", type=int, nargs="+", default=[1, 10], help="in each transaction (1 and 10)")
    options = parser.parse_args()

    from tests.harness import postgresql

    with postgresql.running() as cluster, tempfile.TemporaryDirectory() as folder:
        cluster.create("shop")
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "myproject.settings",
            "DATABASE_URL": cluster.url("shop"),
            "FANFARE_ENGINE": cluster.url("shop"),
            "FANFARE_SECRET_KEY": "a secret key of the measurement, which no deployment has",
            "FANFARE_DATA_DIR": folder,
        }
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        call_command("createapplication", "Shop", stdout=open(os.devnull, "w"))  # noqa: SIM115, PTH123
        for events in options.events:
            taken: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way, changes in WAYS.items():
                    taken[way].append(_measure(_transaction(events), changes, options.transactions))
            for way, times in taken.items():
                print(f"{events:3d} events, {way:17s} {statistics.median(times):6.2f} ms for each transaction")


def _measure(transaction: Callable[[], None], changes: dict[str, bool], number: int) -> float:
    """Milliseconds for each transaction."""
    from django.test import override_settings

    with override_settings(FANFARE=changes):
        transaction()
        began = time.perf_counter()
        for _ in range(number):
            transaction()
        return (time.perf_counter() - began) / number * 1000


def _transaction(events: int) -> Callable[[], None]:
    from django.contrib.auth.models import Group
    from django.db import transaction

    from fanfare import publish

    def run() -> None:
        with transaction.atomic():
            Group.objects.create(name=f"{time.perf_counter_ns()}")
            for number in range(events):
                publish("orders", "created", {"id": number, "text": "x" * 100})

    return run


if __name__ == "__main__":
    main()
