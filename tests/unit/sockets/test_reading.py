"""When the class reads and when it does not, on a transport that a test can look into."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols import utils
from uvicorn.server import ServerState

from fanfare.applications import limits
from fanfare.sockets import asgi, protocol
from tests.harness.wire import CLOSE, CONTINUATION, PING, PONG, TEXT, WireFrame, encode

HEAD = (
    b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n"
)


class Transport(asyncio.Transport):
    """Keeps the written bytes, like a client that does not read, and counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.changes = 0  # of reading
        self.closed = self.half_closed = self.aborted = False

    def write(self, data: Any) -> None:
        assert not self.closed
        assert not self.half_closed
        self.written += data

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def pause_reading(self) -> None:
        self.reading = False
        self.changes += 1

    def resume_reading(self) -> None:
        assert not self.closed
        self.reading = True
        self.changes += 1

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Listener:
    def __init__(self) -> None:
        self.answers: dict[bytes, bytes] = {}
        self.calls: list[str] = []
        self.rests_s: dict[str, float] = {}

    def received(self, text: str) -> float:
        self.calls.append(text)
        return self.rests_s.get(text, 0.0)

    def restart(self) -> None: ...

    def received_binary(self) -> None:
        raise AssertionError("nothing binary is sent here")

    def end(self) -> None:
        self.calls.append("the end")


class Connection:
    """One in the test's own loop. `listener`: None leaves it to an application that waits for `self.may_go`."""

    def __init__(self, listener: Listener | None = None, *, state: ServerState | None = None, **options: Any) -> None:
        self.listener = listener
        self.received: list[Any] = []
        self.may_receive = asyncio.Semaphore(0)
        self.transport = Transport()
        self.state = state or ServerState()
        config = uvicorn.Config(self._application, interface="asgi3", log_config=None, **options)
        config.load()
        self.protocol = protocol.WebSocketProtocol(config, self.state, {})
        self.protocol.connection_made(self.transport)
        self.protocol.data_received(HEAD)

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if self.listener is not None:
            assert isinstance(send.__self__, asgi.AsgiConnection)
            send.__self__.socket.listen(self.listener)
            return
        while not self.received or self.received[-1]["type"] != "websocket.disconnect":
            await self.may_receive.acquire()
            self.received.append(await receive())

    async def opened(self) -> Connection:
        await turns(5)
        assert self.transport.written.startswith(b"HTTP/1.1 101 ")
        self.transport.written = b""
        return self

    def feed(self, *frames: WireFrame) -> None:
        assert self.transport.reading
        self.protocol.data_received(b"".join(map(encode, frames)))

    async def lost(self) -> None:
        self.protocol.connection_lost(None)
        for _ in range(5):
            self.may_receive.release()
        await turns(5)
        assert not self.state.connections
        assert not self.state.tasks


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _no_turn_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is."""
    monkeypatch.setattr(protocol, "TURN_S", float("inf"))


FLOODS = {
    "messages": [WireFrame(TEXT, b"x")] * 1_000,
    "empty fragments": [WireFrame(TEXT, b"", fin=False)] + [WireFrame(CONTINUATION, b"", fin=False)] * 999,
    "pings": [WireFrame(PING, b"")] * 1_000,
    "pongs": [WireFrame(PONG, b"")] * 1_000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_other_tasks_run_between_64_frames_of_one_client(
    flood: list[WireFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "PAUSE_S", 0.0)
    connection = await Connection(listener := Listener()).opened()
    connection.feed(*flood)
    passed = 0
    while not connection.transport.reading:
        assert len(listener.calls) <= (passed + 1) * protocol.FRAMES_PER_TURN
        passed += 1
        await turns(1)
    assert passed >= 1_000 // protocol.FRAMES_PER_TURN
    assert connection.transport.changes == 2  # stopped once, and begun once
    await connection.lost()


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_flood_of_frames_is_read_with_pauses_and_counted(flood: list[WireFrame]) -> None:
    loop = asyncio.get_running_loop()
    connection = await Connection(Listener()).opened()
    counted: list[str] = []
    connection.protocol._shared.count = counted.append
    begun_s = loop.time()
    connection.feed(*flood)
    while not connection.transport.reading:
        await asyncio.sleep(0.001)
    pauses = len(flood) // protocol.FRAMES_PER_TURN
    assert loop.time() - begun_s >= pauses * protocol.PAUSE_S
    assert counted == ["sockets.paused"] * pauses
    await connection.lost()


async def test_clients_share_the_time_of_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [str(number) for number in range(20)]
    flood = [WireFrame(TEXT, text.encode()) for text in sent]
    state = ServerState()
    first = await Connection(one := Listener(), state=state).opened()
    first.listener = other = Listener()  # of the next connection: a server has one application
    second = await Connection(state=state).opened()
    counted: list[str] = []
    first.protocol._shared.count = counted.append
    monkeypatch.setattr(protocol, "TURN_S", 0.0)
    first.feed(*flood)
    begun = len(one.calls)
    second.feed(*flood)
    assert begun < len(flood)
    assert other.calls == sent[:2]
    assert not first.transport.reading
    assert not second.transport.reading
    while not (first.transport.reading and second.transport.reading):
        await asyncio.sleep(0.001)
    assert one.calls == other.calls == sent
    assert counted == []
    first.protocol.connection_lost(None)
    await second.lost()


async def test_next_turn_has_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = await Connection(Listener()).opened()
    shared = connection.protocol._shared
    monkeypatch.setattr(protocol, "TURN_S", 0.0)
    assert not shared.is_turn_long()
    assert shared.is_turn_long()
    await turns(2)
    assert not shared.is_turn_long()
    await connection.lost()


async def test_large_read_is_handled_at_once_and_followed_by_a_pause_of_its_size() -> None:
    loop = asyncio.get_running_loop()
    connection = await Connection(listener := Listener()).opened()
    begun_s = loop.time()
    connection.feed(WireFrame(TEXT, b"x" * 130_000))
    assert len(listener.calls) == 1
    assert not connection.transport.reading
    while not connection.transport.reading:
        await asyncio.sleep(0.001)
    assert loop.time() - begun_s >= 130_000 / protocol.BYTES_PER_SECOND
    await connection.lost()


async def test_frames_of_an_ordinary_client_cause_no_pause() -> None:
    connection = await Connection(listener := Listener()).opened()
    connection.feed(*[WireFrame(TEXT, b"x" * 1_000)] * (protocol.FRAMES_PER_TURN - 1))
    assert len(listener.calls) == protocol.FRAMES_PER_TURN - 1
    assert connection.transport.reading
    assert connection.transport.changes == 0
    await connection.lost()


async def test_flood_of_a_client_that_the_server_closes_is_read_with_pauses_until_its_answer() -> None:
    connection = await Connection(Listener()).opened()
    connection.protocol.close(4000)
    connection.feed(*[WireFrame(PING, b"")] * 200, WireFrame(CLOSE, b"\x0f\xa0"))
    assert not connection.transport.reading
    assert not connection.transport.closed
    while not connection.transport.closed:
        await asyncio.sleep(0.001)
    await connection.lost()


def test_client_events_may_be_as_frequent_as_an_application_allows() -> None:
    allowed = limits.BOUNDS["client_events_per_second"].most
    assert allowed < protocol.FRAMES_PER_TURN / protocol.PAUSE_S


async def test_client_is_not_read_while_it_rests() -> None:
    connection = await Connection(listener := Listener()).opened()
    listener.rests_s = {"a": 0.05, "b": 0.05}
    begun_s = asyncio.get_running_loop().time()
    connection.feed(*(WireFrame(TEXT, text) for text in (b"a", b"b", b"c")))
    await turns(5)
    assert listener.calls == ["a"]
    while not connection.transport.reading:
        await turns(1)
    assert listener.calls == ["a", "b", "c"]
    assert asyncio.get_running_loop().time() - begun_s >= 0.1
    assert connection.transport.changes == 2
    await connection.lost()


async def test_server_that_closes_a_resting_client_reads_its_answer() -> None:
    connection = await Connection(listener := Listener()).opened()
    listener.rests_s = {"a": 60.0}
    connection.feed(WireFrame(TEXT, b"a"), WireFrame(TEXT, b"b"), WireFrame(CLOSE, b"\x03\xe8"))
    connection.protocol.close(4000)
    await turns(5)
    assert listener.calls == ["a", "the end"]
    assert connection.transport.closed
    await connection.lost()


async def test_resting_client_that_is_lost_is_forgotten() -> None:
    connection = await Connection(listener := Listener()).opened()
    listener.rests_s = {"a": 0.01}
    connection.feed(WireFrame(TEXT, b"a"), WireFrame(TEXT, b"b"))
    await connection.lost()
    await asyncio.sleep(0.02)
    assert listener.calls == ["a", "the end"]


async def test_flood_of_pings_queues_no_second_message_for_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PAUSE_S", 0.0)
    connection = await Connection().opened()
    connection.feed(*([WireFrame(PING, b"")] * 63 + [WireFrame(TEXT, b"x")]) * 10)
    await turns(50)
    taken = connection.protocol._asgi
    assert taken is not None
    assert len(taken.waiting()) == 1
    assert not connection.transport.reading
    for n in range(10):
        connection.may_receive.release()
        await turns(10)
        assert len(connection.received) == n + 1
        assert len(taken.waiting()) <= 1
    assert connection.transport.reading
    await connection.lost()


async def test_backlog_is_handled_without_pausing_the_transport_again() -> None:
    connection = await Connection().opened()
    connection.feed(*[WireFrame(TEXT, b"x")] * 100)
    for _ in range(100):
        connection.may_receive.release()
        await turns(3)
    assert len(connection.received) == 100
    assert connection.transport.reading
    assert connection.transport.changes == 2
    await connection.lost()


async def test_pings_of_a_client_that_does_not_read_get_one_pong_later() -> None:
    connection = await Connection(Listener()).opened()
    connection.protocol.pause_writing()
    for n in range(1_000):
        connection.feed(WireFrame(PING, b"%d" % n))
    assert connection.transport.written == b""
    connection.protocol.resume_writing()
    assert connection.transport.written == b"\x8a\x03999"
    connection.protocol.resume_writing()
    assert connection.transport.written == b"\x8a\x03999"
    await connection.lost()


async def test_bytes_before_the_accept_pause_reading() -> None:
    connection = Connection(listener := Listener())
    connection.feed(WireFrame(TEXT, b"early"))
    assert not connection.transport.reading
    await connection.opened()
    assert listener.calls == ["early"]
    assert connection.transport.reading
    await connection.lost()


async def test_violation_closes_the_sending_half_and_drops_the_rest() -> None:
    connection = await Connection(listener := Listener()).opened()
    connection.feed(WireFrame(TEXT, b"1"), WireFrame(3, b""), WireFrame(TEXT, b"2"))
    assert (connection.transport.written[:1], connection.transport.written[2:4]) == (b"\x88", b"\x03\xea")
    assert connection.transport.half_closed
    assert not connection.transport.closed
    connection.feed(WireFrame(TEXT, b"3"))
    await turns(1)
    assert listener.calls == ["1", "the end"]
    connection.protocol.eof_received()
    await connection.lost()
    assert listener.calls == ["1", "the end"]


async def test_no_ping_is_sent_after_a_close_frame() -> None:
    connection = await Connection(Listener(), ws_ping_interval=0.25).opened()
    assert connection.protocol.slot is not None
    connection.protocol.close(4000)
    assert connection.protocol.slot is None
    connection.feed(WireFrame(CLOSE, b"\x0f\xa0"))
    assert connection.transport.closed
    await connection.lost()


async def test_lost_connection_leaves_no_timer() -> None:
    loop = asyncio.get_running_loop()
    connection = await Connection(Listener(), ws_ping_interval=20).opened()
    connection.protocol.close(4000)
    await connection.lost()
    waiting = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert waiting == []


@pytest.mark.parametrize("moment", ["connecting", "open", "closing", "ending"])
async def test_lost_transport_is_not_used_again(moment: str) -> None:
    """uvloop's raises then."""
    connection = Connection(Listener())
    if moment != "connecting":
        await connection.opened()
    if moment == "closing":
        connection.protocol.close(4000)
    if moment == "ending":
        connection.protocol.eof_received()
    await connection.lost()
    connection.protocol._transport = None
    of = connection.protocol
    of.send(b"x")
    of.close(4000)
    of.abort()
    of.read_on()
    of.shutdown()
    assert of.buffered() == 0
    assert of.is_gone()


async def test_send_to_a_closing_transport_raises_at_once() -> None:
    """asyncio's transport tells of a dead client a turn later: an application that only sends would never let it."""
    connection = await Connection().opened()
    connection.transport.aborted = True
    taken = connection.protocol._asgi
    assert taken is not None
    with pytest.raises(utils.ClientDisconnected):
        await taken.send({"type": "websocket.send", "text": "x"})
    assert connection.protocol.is_closing()
    await connection.lost()
