"""The requests that write streams at the deployment, and their answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from fanfare.engine import interface
from fanfare.hub import streams
from fanfare.integration.remote import paths
from fanfare.protocol import names

BATCH = 100  # appends per request: the maximum of the API
BATCH_BYTES = 512 * 1024  # of their JSON: the API takes at least 819,200


def request(write: interface.StreamWrite) -> tuple[str, dict[str, Any]]:
    """The path and the body of the request that does the same as this write at the other deployment."""
    data = orjson.loads(write.body)["data"] if write.body else None
    is_sealed = data is not None and names.is_encrypted(write.channel)
    text: dict[str, Any] = {}
    if is_sealed:
        text = {"data": data, "length": write.size}
    elif write.part:
        text = {"text": write.part.decode()}
    if write.head is not None:
        head = streams.Head.parse(write.head)
        fields = {"name": head.event, "id": write.id, "seq": write.seq, "meta": head.meta, "closings": head.closings}
        return f"{paths.channel(write.channel)}/streams", {**fields, **text}
    fields = {"seq": write.seq, "after": write.after, **text}
    if write.replaces:
        fields["at"] = 0
    if write.state is not interface.StreamState.OPEN:
        fields["state"] = write.state.name.lower()
        if data is not None and not is_sealed and "error" in (ended := orjson.loads(data)):
            fields["error"] = ended["error"]
    return f"{paths.stream(write.channel, write.id)}/append", fields


def batches(writes: Sequence[interface.StreamWrite]) -> Iterator[list[dict[str, Any]]]:
    """The bodies of requests that append to several streams: at most BATCH appends with BATCH_BYTES of JSON. A
    larger append has a request of its own.
    """
    batch: list[dict[str, Any]] = []
    size = 0
    for write in writes:
        _, fields = request(write)
        item = {"channel": write.channel, "stream": write.id, **fields}
        item_size = len(orjson.dumps(item))
        if batch and (len(batch) == BATCH or size + item_size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item_size
    if batch:
        yield batch


def receipt(answer: dict[str, Any], *, done: bool) -> interface.StreamReceipt:
    state = None if answer["state"] is None else interface.StreamState[answer["state"].upper()]
    return interface.StreamReceipt(done, state, answer["seq"], answer["length"])
