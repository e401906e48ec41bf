"""A process of the PostgreSQL kill run that publishes without a pause until SIGTERM, and once more after it.

The kill run stops it with SIGSTOP in the middle of a publication. Its channel has no clients. Prints a
line after the first publication.
"""

from __future__ import annotations

import signal

import django

CHANNEL = "frozen"


def main() -> None:
    django.setup()
    import fanfare

    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    number = 0
    while True:
        is_last = bool(ends)
        fanfare.publish(CHANNEL, "number", number)
        if not number:
            print("publishing", flush=True)
        if is_last:
            return
        number += 1


if __name__ == "__main__":
    main()
