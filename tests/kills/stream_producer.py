"""A producer process of `tests.kills.streams`: appends a token to each of its streams at a steady rate.

Arguments: the first stream, the number of streams, tokens per second of each, seconds. Runs in the environment of the
deployment. Prints the number of tokens of each stream.
"""

from __future__ import annotations

import sys
import time

import django


def main() -> None:
    first, count, rate, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    django.setup()
    import fanfare
    from tests.kills import streams

    numbers = range(first, first + count)
    blocks = [fanfare.stream(streams.channel(number), "answer", id="a") for number in numbers]
    answers = [block.__enter__() for block in blocks]
    print("open", flush=True)
    sys.stdin.readline()  # the readers have subscribed
    started, sent = time.monotonic(), 0
    while (now := time.monotonic()) - started < seconds:
        due = int((now - started) * rate)
        while sent < due:
            sent += 1
            for number, answer in zip(numbers, answers, strict=True):
                answer.append(streams.token(number, sent))
        time.sleep(0.005)
    for block in blocks:
        block.__exit__(None, None, None)
    print(sent, flush=True)


if __name__ == "__main__":
    main()
