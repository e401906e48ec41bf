"""The operations of streams: messages that grow, for producers in any language.

Each answer describes the stream as it is now, and `accepted` says whether the request changed it. So a producer that
got no answer repeats its request, and one that reconnects gets the position of its stream. See `fanfare.hub.streams`
for the events that subscribers get.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from fanfare.api import parameters, rates, refusals, requests
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.hub import streams as wire
from fanfare.protocol import names, streams
from fanfare.protocol import refusals as protocol_refusals

State = interface.StreamState

FINAL: Final = tuple(state.name.lower() for state in State if state is not State.OPEN)
CLOSINGS: Final = ("cancelled", "interrupted")
BATCH: Final = 100  # appends of one request
ITEM_BYTES: Final = 8_192  # of an append's JSON, beside a long text

_rate: Final = rates.Rate("appends to this stream", "too_many_appends")


async def open_stream(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Open a stream, or learn where the stream with this id stands. A failed or interrupted one is opened again.

    Parameters: `name`, `id`, `meta`, `text`, `seq`; on encrypted channels also `data`, `length`, `closings`.
    """
    fields, application = request.fields(), request.application
    channel = parameters.channel_name(request.names["channel"], application.limits)
    stream_id = fields.get("id")
    if stream_id is None:
        stream_id = secrets.token_hex(8)
    where = _where(application, channel, stream_id)
    event = parameters.event_name(fields.get("name"), application.limits)
    text, data = _text(fields, channel), _data(fields, channel)
    seq = _number("seq", fields.get("seq"), 0)
    head = wire.Head(event, fields.get("meta"), _closings(fields, channel))
    known = await _find(hub, where)
    after = 0
    if known is not None:
        if known.state not in interface.RESUMABLE:
            return _answer(where.id, interface.StreamReceipt(False, known.state, known.seq, known.size))
        after = known.seq
        if not text and data is None and head.closings is None:
            text, seq = wire.text_of(known), known.seq
    write = streams.opening(
        where, head, text=text, data=data, part=None if data is None else data.encode(), after=after, seq=seq
    )
    if data is not None:
        write = write._replace(size=_number("length", fields.get("length"), 0))
    _check_length(write.size)
    [receipt] = await _write(hub, [write])
    if receipt.limit is not None:
        raise refusals.Invalid(
            f"Too many streams: {receipt.actual} are open, the allowed maximum is {receipt.limit}.",
            code="too_many_streams",
        )
    hub.count("streams.opened")
    return _answer(where.id, receipt)


async def append_to_stream(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Add text to a stream, end it, or with neither renew its lease.

    Parameters: `seq`, `after`, `text`, `at`, `state`, `error`; on encrypted channels `data` and `length`.
    """
    append = _append(request.application, request.names["channel"], request.names["stream"], request.fields())
    known = await _find(hub, append.where)
    writes = _writes(request.application, append, known)
    if not writes:
        return _answer(append.where.id, _as_it_is(known))
    receipts = await _write(hub, writes)
    hub.count("streams.appended")
    return _answer(append.where.id, receipts[-1])


async def append_to_streams(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Several appends, to any channels. Parameter: `batch`, each item with the parameters of an append, `channel` and
    `stream`.

    Each item is answered by itself. Appends to different streams share a commit, and those to one stream are done in
    order.
    """
    application = request.application
    items = request.fields().get("batch")
    if not isinstance(items, list):
        raise refusals.Invalid("The parameter batch is missing: a list of appends.", code="missing_batch")
    if len(items) > BATCH:
        raise refusals.Invalid(
            f"Batch too large: it has {len(items)} appends, the allowed maximum is {BATCH}.", code="batch_too_large"
        )
    answers: dict[int, dict[str, Any]] = {}
    waiting: dict[int, _Append] = {}
    for index, fields in enumerate(items):
        try:
            waiting[index] = _item(application, fields)
        except refusals.ApiError as error:
            answers[index] = _refused(hub, error)
    while waiting:
        turn = sorted({waiting[index].where: index for index in reversed(waiting)}.values())  # the first of each stream
        appends = {index: waiting.pop(index) for index in turn}
        found = await _find_all(hub, [append.where for append in appends.values()])
        writes: dict[int, list[interface.StreamWrite]] = {}
        for (index, append), known in zip(appends.items(), found, strict=True):
            try:
                writes[index] = _writes(application, append, known)
            except refusals.ApiError as error:
                answers[index] = _refused(hub, error)
            else:
                answers[index] = _state(append.where.id, _as_it_is(known))
        if not any(writes.values()):
            continue
        receipts = iter(await _write(hub, [write for own in writes.values() for write in own]))
        for index, own in writes.items():
            for _ in own:
                answers[index] = _state(appends[index].where.id, next(receipts))
        hub.count("streams.appended", sum(map(bool, writes.values())))
    return orjson.dumps({"batch": [answers[index] for index in range(len(items))]})


async def stream(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Describe a stream that is open or ended lately, with its text, or with the pieces of an encrypted one."""
    application = request.application
    channel = parameters.channel_name(request.names["channel"], application.limits)
    where = _where(application, channel, request.names["stream"])
    known = await _find(hub, where)
    fields = _description(where.id, _as_it_is(known))
    if known is not None and names.is_encrypted(channel):
        fields["pieces"] = wire.sealed_pieces(known)
    elif known is not None:
        fields["text"] = wire.text_of(known)
    return orjson.dumps(fields)


async def cancel_stream(hub: hubs.Hub, request: requests.Request) -> bytes:
    """End an open stream as cancelled. Its producer learns of it with its next append."""
    application = request.application
    channel = parameters.channel_name(request.names["channel"], application.limits)
    where = _where(application, channel, request.names["stream"])
    before = await streams.end(hub, application, where, State.CANCELLED)
    if before is None or before.state is not State.OPEN:
        return _answer(where.id, _as_it_is(before))
    return _answer(where.id, interface.StreamReceipt(True, State.CANCELLED, before.seq, before.size))


# -- appends -----------------------------------------------------------------------------------------------------------


class _Append(NamedTuple):
    """The parameters of an append. `after`: the numbers that the stream may have before it. `at`, `length`: not checked
    yet."""

    where: interface.StreamName
    seq: int
    after: tuple[int, ...]
    text: str
    data: str | None
    at: Any
    length: Any
    state: State | None
    error: str | None


def _append(application: registry.Application, channel: Any, stream_id: Any, fields: dict[str, Any]) -> _Append:
    """Raises ApiError; TooOften if the stream has had too many appends in this second."""
    channel = parameters.channel_name(channel, application.limits)
    where = _where(application, channel, stream_id)
    state = fields.get("state")
    if state is not None and state not in FINAL:
        raise refusals.Invalid(f"The parameter state must be one of {', '.join(FINAL)}.", code="invalid_state")
    text, data = _text(fields, channel), _data(fields, channel)
    seq = _number("seq", fields.get("seq"), None)
    if fields.get("after") is not None:
        after: tuple[int, ...] = (_number("after", fields["after"], None),)
    elif text or data is not None:
        after = (max(seq - 1, 0),)
    elif fields.get("text") is None:
        after = (seq,)
    else:  # the token `seq` is empty, or there is none
        after = (max(seq - 1, 0), seq)
    error = fields.get("error")
    if error is not None and not isinstance(error, str):
        raise refusals.Invalid("The parameter error must be a string.", code="invalid_error")
    most, per_second = streams.limits().appends_per_second, application.limits.max_events_per_second
    _rate.spend(where, most if per_second is None else min(most, per_second))
    final = None if state is None else interface.StreamState[state.upper()]
    return _Append(where, seq, after, text, data, fields.get("at"), fields.get("length"), final, error)


def _item(application: registry.Application, fields: Any) -> _Append:
    """An item of a batch. Raises ApiError."""
    if not isinstance(fields, dict):
        raise refusals.Invalid("An append of the batch must be a JSON object.", code="invalid_append")
    return _append(application, fields.get("channel"), fields.get("stream"), fields)


def _writes(
    application: registry.Application, append: _Append, known: interface.Streamed | None
) -> list[interface.StreamWrite]:
    """The changes of the stream `known`; none if it is not as the append expects it. Raises ApiError."""
    where, seq, _, text, data, at, length, state, error = append
    if known is None or known.state is not State.OPEN or known.seq not in append.after:
        return []
    at = _number("at", at, known.size)
    if at not in (0, known.size):
        raise refusals.Invalid(
            f"The parameter at is {at}; it is {known.size}, the stream's length, or 0 to replace the text.",
            code="invalid_at",
        )
    bounds = streams.limits()
    head = wire.Head.parse(known.head)
    writes: list[interface.StreamWrite] = []
    if text or (data is not None and state is None) or (at == 0 and known.size):
        write = streams.piece(
            where, head, text, after=known.seq, seq=seq, at=at, lease_s=bounds.lease_s, data=data, replaces=at == 0
        )
        if data is not None:
            write = write._replace(size=_number("length", length, None))
        _check_length(write.size)
        writes.append(write)
    elif state is None or seq != known.seq:  # a renewal, or an empty token
        writes.append(interface.StreamWrite(*where, known.seq, seq, known.size, seconds=bounds.lease_s))
    if state is not None:
        parts = (text.encode(),) if at == 0 else (*known.parts, text.encode())
        now = known._replace(seq=seq, size=writes[0].size if writes else known.size, parts=parts)
        kept = streams.retention(application, where.channel)
        if data is None:
            ending = wire.ending(where, now, state, retention=kept, keep_s=bounds.keep_s, error=error)
        else:
            ending = streams.ended(
                where, head, data, after=seq, size=now.size, state=state, retention=kept, keep_s=bounds.keep_s
            )
        writes.append(ending)
    return writes


# -- parameters and answers --------------------------------------------------------------------------------------------


def _where(application: registry.Application, channel: str, stream_id: Any) -> interface.StreamName:
    try:
        streams.check_channel(channel)
        streams.check_id(stream_id)
    except protocol_refusals.PusherError as error:
        raise refusals.Invalid(f"{error}.", code="invalid_stream") from None
    return interface.StreamName(application.id, channel, stream_id)


def _text(fields: dict[str, Any], channel: str) -> str:
    text = fields.get("text")
    if text is None:
        return ""
    if not isinstance(text, str):
        raise refusals.Invalid("The parameter text must be a string.", code="invalid_text")
    if names.is_encrypted(channel):
        raise refusals.Invalid(
            f"The channel {channel} is encrypted: send data, the encrypted event, and length in place of text.",
            code="invalid_text",
        )
    return text


def _data(fields: dict[str, Any], channel: str) -> str | None:
    data = fields.get("data")
    if data is None:
        return None
    if not isinstance(data, str) or not names.is_encrypted(channel):
        raise refusals.Invalid("The parameter data is a string, for encrypted channels.", code="invalid_data")
    return data


def _closings(fields: dict[str, Any], channel: str) -> dict[str, str] | None:
    if not names.is_encrypted(channel):
        return None
    closings = fields.get("closings")
    if not isinstance(closings, dict) or not all(isinstance(closings.get(name), str) for name in CLOSINGS):
        raise refusals.Invalid(
            "The parameter closings is missing: on an encrypted channel an object with the encrypted data of the "
            f"events {' and '.join(CLOSINGS)}, which the server cannot make.",
            code="missing_closings",
        )
    return {name: closings[name] for name in CLOSINGS}


def _number(name: str, value: Any, default: int | None) -> int:
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 <= value <= 2**53:
        raise refusals.Invalid(f"The parameter {name} must be a whole number.", code=f"invalid_{name}")
    return value


def _check_length(size: int) -> None:
    limit = streams.limits().length
    if size > limit:
        raise refusals.TooLarge(
            f"The stream would have {size} UTF-16 code units, the allowed maximum is {limit}.", code="stream_too_long"
        )


async def _find(hub: hubs.Hub, where: interface.StreamName) -> interface.Streamed | None:
    return await hub.engine.ask(lambda queries: queries.stream(*where))


async def _find_all(hub: hubs.Hub, wheres: Sequence[interface.StreamName]) -> list[interface.Streamed | None]:
    return await hub.engine.ask(lambda queries: [queries.stream(*where) for where in wheres])


async def _write(hub: hubs.Hub, writes: Sequence[interface.StreamWrite]) -> list[interface.StreamReceipt]:
    return await asyncio.to_thread(hub.engine.write_streams, writes)


def _as_it_is(known: interface.Streamed | None) -> interface.StreamReceipt:
    if known is None:
        return interface.StreamReceipt(False, None)
    return interface.StreamReceipt(False, known.state, known.seq, known.size)


def _description(stream_id: str, receipt: interface.StreamReceipt) -> dict[str, Any]:
    return {
        "id": stream_id,
        "state": None if receipt.state is None else receipt.state.name.lower(),
        "seq": receipt.seq,
        "length": receipt.size,
    }


def _state(stream_id: str, receipt: interface.StreamReceipt) -> dict[str, Any]:
    return {"accepted": receipt.done, **_description(stream_id, receipt)}


def _answer(stream_id: str, receipt: interface.StreamReceipt) -> bytes:
    return orjson.dumps(_state(stream_id, receipt))


def _refused(hub: hubs.Hub, error: refusals.ApiError) -> dict[str, Any]:
    """The answer to an item of a batch."""
    hub.count(f"api.refused.{error.status}")
    return {"status": error.status, "error": str(error), "code": error.code}


def body_limit(limits: registry.Limits) -> int:
    """Bytes that the body of an opening or an append can have: the longest text, with each character escaped."""
    return ITEM_BYTES + 12 * streams.limits().length


def batch_body_limit(limits: registry.Limits) -> int:
    """Bytes that the body of a batch can have: BATCH appends of ordinary size, one of them with the longest text."""
    return BATCH * ITEM_BYTES + 12 * streams.limits().length
