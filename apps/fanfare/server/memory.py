"""What a server that has started tells the garbage collector and the allocator: that it will live for long."""

from __future__ import annotations

import contextlib
import ctypes
import gc

# How many more objects than before make the collector look: more than are under way in one turn of the loop, which are
# gone at its end without it. By Python's default of 700 it took them for objects that stay, and then went through all
# of 10,000 connections every few turns: 25 % of the CPU of small rooms.
YOUNG = 50_000

# Of <malloc.h>. What the server needs for one turn of its loop stays with it: at most so much is never given back.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 32 * 1024 * 1024
MAPPED_BYTES = 8 * 1024 * 1024  # naming the one ends glibc's own adjusting of the other: this is where that leads to


def settle_in() -> None:
    """Call it once, when all is loaded.

    What is there by now stays for the life of the process. The collector looked at some 80,000 objects of Django and
    its kind whenever a quarter as many had come: 13 % of the CPU of a publication, 20 % of a batch. And glibc gave the
    memory of a turn back to the kernel at its end, to ask for it again in the next one, page by page: 10 % of a batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
