"""The form of an entry in the log, in histories and in messages (scripts/common.lua)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgpack

from fanfare.engine import interface

VERSION: Final = 1
_HEAD: Final = struct.Struct(">BIQQQH")  # version, length of all, sequence, offset or 0, ms, length of the meta part
_HEAD_SIZE: Final = _HEAD.size
_BEGINNING: Final = struct.Struct(">BIQ")
_CACHED: Final = 10_000  # meta parts; those of one channel are equal

_metas: dict[bytes, tuple[Any, ...]] = {}


def meta(publication: interface.Publication) -> bytes:
    """The meta part of a publication's entry. Raises UnicodeEncodeError for lone surrogates."""
    return pack(
        [
            int(publication.kind),
            publication.app,
            publication.channel,
            publication.user_id if publication.user_id is not None else False,
            publication.exclude if publication.exclude is not None else False,
        ]
    )


def pack(value: Any) -> bytes:
    """msgpack in the form that Lua reads: all strings are of one type."""
    packed: bytes = msgpack.packb(value, use_bin_type=False)
    return packed


def write(entry: interface.Entry) -> bytes:
    """An entry as the scripts write it."""
    about = meta(interface.Publication(entry.app, entry.channel, b"", interface.Kind(entry.kind), *entry[5:7]))
    size = _HEAD_SIZE + len(about) + len(entry.body)
    return _HEAD.pack(VERSION, size, entry.id, entry.offset or 0, entry.created_ms, len(about)) + about + entry.body


def read(data: bytes) -> Iterator[interface.Entry | None]:
    """The entries of a message; None for one of a version that this release does not read. Raises ValueError, TypeError
    or struct.error for other bytes, which another program has written.
    """
    start, end = 0, len(data)
    while start < end:
        version, size, sequence, offset, created_ms, meta_size = _HEAD.unpack_from(data, start)
        if size < _BEGINNING.size:  # also in other versions; of 0 bytes, the loop would not end
            raise ValueError(f"An entry has {size} bytes: another program has written it.")
        if version == VERSION:
            body = start + _HEAD_SIZE + meta_size
            kind, app, channel, user, exclude = _meta(data[start + _HEAD_SIZE : body])
            yield interface.Entry(
                sequence, kind, app, channel, offset or None, user, exclude, data[body : start + size], created_ms
            )
        else:
            yield None
        start += size


def read_all(parts: Iterable[bytes]) -> list[interface.Entry]:
    """The entries of a reply, without those of other versions. Positions of the reply are those of `sequence`: an entry
    that this release does not read is passed over, and neither ends the reply nor is asked for again."""
    return [entry for part in parts for entry in read(part) if entry is not None]


def sequence(part: bytes) -> int:
    """Of an entry of any version: the header begins with the version, the length and the sequence in all of them."""
    _, _, found = _BEGINNING.unpack_from(part)
    return int(found)


def _meta(packed: bytes) -> tuple[Any, ...]:
    found = _metas.get(packed)
    if found is None:
        kind, app, channel, user, exclude = msgpack.unpackb(packed, raw=False)
        found = (kind, app, channel, user if user is not False else None, exclude if exclude is not False else None)
        if len(_metas) >= _CACHED:
            _metas.clear()
        _metas[packed] = found
    return found
