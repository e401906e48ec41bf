"""Many small rooms: presence channels of five members that send client events, while visitors join and leave.

The mix is fixed, so that all servers do the same work: in turn through the rooms, ten rounds of client events and one
visit. A client event is delivered to the four other members. A visit is a connection that joins a room and leaves it;
the members are notified of both. Each room has one action in progress at a time, and enough rooms are active to keep
the server busy. So every expected delivery is known exactly and is checked.

The row is measured with one sender at a time per room, where each delivery is a separate write, and with all five
members sending at once, where a server can join the frames for a client.
"""

from __future__ import annotations

import contextlib
import json
import select
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.harness import deployments, signing
from tests.load import connections, errors, machine, rows, subjects
from tests.load.subjects import fanfare, pusher, sockudo, soketi

NAME = "small-rooms"
TITLE = "2,000 presence channels of 5: client events and visits"

ROOMS, SEATS = 2_000, 5
VISITORS = 64
EVENTS_PER_VISIT = 10
WAYS = {"one sends at a time": 1, "all five send at once": SEATS}
ACTIVE_ROOMS = 256  # one in eight
WARM_UP_S = 0.5
QUIET_S = 1.0
PATIENCE_S = 10.0

EVENT = "client-tick"
NUMBER = b"number="
DIGITS = 8
DATA = NUMBER.decode() + "%0*d" + "." * 55  # about 150 bytes with its envelope

# The protocol's names of the events that members and visitors receive.
ADDED, REMOVED = b'"pusher_internal:member_added"', b'"pusher_internal:member_removed"'
SUCCEEDED = b'"pusher_internal:subscription_succeeded"'


class Sample(NamedTuple):
    deliveries: int
    wall_s: float
    server_cpu_s: float
    client_cpu_s: float

    @property
    def per_cpu_second(self) -> float:
        return self.deliveries / self.server_cpu_s


COMPARED = rows.Column("deliveries per CPU second", lambda sample: sample.per_cpu_second)
LESS_IS_BETTER = False
COLUMNS: Sequence[rows.Column] = (
    COMPARED,
    rows.Column("deliveries/s", lambda sample: sample.deliveries / sample.wall_s),
    rows.Column("server's share of its core", lambda sample: sample.server_cpu_s / sample.wall_s, percent=True),
    rows.Column("client's core", lambda sample: sample.client_cpu_s / sample.wall_s, percent=True),
)


def takes(subject: subjects.Subject) -> bool:
    return subject.name in (subjects.FANFARE, subjects.SOKETI, subjects.SOCKUDO)


def measure(
    subject: fanfare.Fanfare | soketi.Soketi | sockudo.Sockudo, folder: Path, plan: rows.Plan
) -> Iterator[rows.Measured]:
    with subject.running(folder, plan.cores.server) as running, opened(running) as house:
        for name, speakers in WAYS.items():
            house.speakers = speakers
            house.live_for(WARM_UP_S)
            deliveries = house.deliveries
            before = machine.clocks(running.pid)
            house.live_for(plan.seconds)
            spent = machine.clocks(running.pid).since(before)
            yield rows.Measured(name, Sample(house.deliveries - deliveries, *spent))


@contextlib.contextmanager
def opened(running: pusher.Running) -> Iterator[House]:
    """All members have joined, and have read the joins of the others."""
    members = [_member(running.application, index // SEATS, index % SEATS) for index in range(ROOMS * SEATS)]
    socket_ids: list[str] = []
    visitors = [_visitor(socket_ids) for _ in range(VISITORS)]
    with contextlib.ExitStack() as stack:
        present = connections.each(running.port, running.target, members)
        for one in present:
            stack.callback(one.close)
        # One at a time, so that the socket ids are in the order of the connections.
        coming = connections.each(running.port, running.target, visitors, at_once=1)
        for one in coming:
            stack.callback(one.close)
        house = House(running.application, present, coming, socket_ids)
        stack.callback(house.close)
        house.become_quiet()
        yield house


class House:
    """All rooms with their members, visitors and expected deliveries."""

    def __init__(
        self,
        application: deployments.Application,
        members: Sequence[connections.Connection],
        visitors: Sequence[connections.Connection],
        socket_ids: Sequence[str],
    ) -> None:
        self.speakers = 1  # members of a room that send at the same moment
        self.deliveries = 0  # to members: client events, joins and leaves
        self._application = application
        self._members = members
        self._visitors = visitors
        self._socket_ids = socket_ids
        self._rooms = [_Room(number) for number in range(ROOMS)]
        self._due = [0] * len(members)  # client events that each member must still receive
        self._frames = [connections.Frames() for _ in (*members, *visitors)]
        self._by_fd = {one.socket.fileno(): index for index, one in enumerate((*members, *visitors))}
        self._away = deque(range(len(visitors)))
        self._where: dict[int, _Room] = {}  # by visitor, while it is in a room
        self._begun = 0
        self._active = 0
        self._poll = select.epoll()
        for fd in self._by_fd:
            self._poll.register(fd, select.EPOLLIN)

    def close(self) -> None:
        self._poll.close()

    def become_quiet(self) -> None:
        """Read until no frame arrives for QUIET_S."""
        while ready := self._poll.poll(QUIET_S):
            for fd, _ in ready:
                self._payloads(self._by_fd[fd])

    def live_for(self, seconds: float) -> None:
        """Start actions for `seconds`, then wait for their deliveries. Raises Lost."""
        deadline = time.perf_counter() + seconds
        while True:
            if time.perf_counter() < deadline:
                while self._active < ACTIVE_ROOMS and self.begin():
                    continue
            elif not self._active:
                return
            ready = self._poll.poll(PATIENCE_S)
            if not ready:
                raise errors.Lost(f"deliveries in {self._active} rooms are missing for {PATIENCE_S:g} s")
            for fd, _ in ready:
                index = self._by_fd[fd]
                for payload in self._payloads(index):
                    if index < len(self._members):
                        self._to_member(index, payload)
                    else:
                        self._to_visitor(index - len(self._members), payload)

    # -- actions ------------------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Start the next action of the mix. False if its room is still active or no visitor is free."""
        room = self._rooms[self._begun % ROOMS]
        is_visit = self._begun % (EVENTS_PER_VISIT + 1) == EVENTS_PER_VISIT
        if room.awaited or (is_visit and not self._away):
            return False
        self._begun += 1
        self._active += 1
        if is_visit:
            self._visit(room)
        else:
            self._speak(room)
        return True

    def _speak(self, room: _Room) -> None:
        room.number += 1
        room.expect(self.speakers * (SEATS - 1), b'"%s"' % EVENT.encode())
        data = DATA % (DIGITS, room.number)
        message = f'{{"event":"{EVENT}","channel":"{room.channel}","data":"{data}"}}'
        frame = connections.text(message.encode())
        first = room.index * SEATS
        self._due[first : first + SEATS] = [self.speakers] * SEATS
        for turn in range(self.speakers):
            speaker = first + (room.number + turn) % SEATS
            self._due[speaker] -= 1
            self._members[speaker].send(frame)

    def _visit(self, room: _Room) -> None:
        room.expect(SEATS + 1, ADDED)  # one more for the visitor's subscription_succeeded
        room.visitor = visitor = self._away.popleft()
        self._where[visitor] = room
        subscribe = _subscribe(self._application, self._socket_ids[visitor], room.channel, f"visitor-{visitor}")
        self._visitors[visitor].send(subscribe)

    def _leave(self, room: _Room, visitor: int) -> None:
        room.expect(SEATS, REMOVED)
        message = {"event": "pusher:unsubscribe", "data": {"channel": room.channel}}
        self._visitors[visitor].send(connections.text(json.dumps(message).encode()))

    # -- deliveries ---------------------------------------------------------------------------------------------------

    def _payloads(self, index: int) -> list[bytes]:
        one = self._members[index] if index < len(self._members) else self._visitors[index - len(self._members)]
        frames = self._frames[index]
        payloads = frames.feed(one.socket.recv(connections.READ_BYTES))
        while frames.pings:
            one.send(connections.pong(frames.pings.pop()))
        return payloads

    def _to_member(self, index: int, payload: bytes) -> None:
        room = self._rooms[index // SEATS]
        if not room.awaited or room.event not in payload:
            raise errors.Lost(f"a member of {room.channel} received {payload!r} instead of {room.event!r}")
        at = payload.find(NUMBER)
        if at >= 0:
            number = int(payload[at + len(NUMBER) : at + len(NUMBER) + DIGITS])
            if number != room.number or not self._due[index]:
                raise errors.Lost(
                    f"a member of {room.channel} received event {number}, not expected in round {room.number}"
                )
            self._due[index] -= 1
        self.deliveries += 1
        self._arrived(room)

    def _to_visitor(self, visitor: int, payload: bytes) -> None:
        if SUCCEEDED not in payload or visitor not in self._where:
            raise errors.Lost(f"a visitor received {payload!r}")
        self._arrived(self._where[visitor])

    def _arrived(self, room: _Room) -> None:
        room.awaited -= 1
        if room.awaited:
            return
        visitor = room.visitor
        if visitor is not None and room.event is ADDED:
            self._leave(room, visitor)
            return
        if visitor is not None:
            room.visitor = None
            del self._where[visitor]
            self._away.append(visitor)
        self._active -= 1


class _Room:
    __slots__ = ("awaited", "channel", "event", "index", "number", "visitor")

    def __init__(self, index: int) -> None:
        self.index = index
        self.channel = _channel(index)
        self.number = 0  # of the current round of client events
        self.event = b""  # the event that its members must receive
        self.awaited = 0  # outstanding deliveries of it
        self.visitor: int | None = None

    def expect(self, arrivals: int, event: bytes) -> None:
        self.awaited, self.event = arrivals, event


def _channel(room: int) -> str:
    return f"presence-room-{room:04}"


def _member(application: deployments.Application, room: int, seat: int) -> connections.Dialogue:
    data = pusher.expect((yield b""), "pusher:connection_established")
    socket_id = json.loads(data)["socket_id"]
    answer = yield _subscribe(application, socket_id, _channel(room), f"{room}-{seat}")
    pusher.expect(answer, "pusher_internal:subscription_succeeded")


def _visitor(socket_ids: list[str]) -> connections.Dialogue:
    data = pusher.expect((yield b""), "pusher:connection_established")
    socket_ids.append(json.loads(data)["socket_id"])


def _subscribe(application: deployments.Application, socket_id: str, channel: str, user: str) -> bytes:
    member = json.dumps({"user_id": user, "user_info": {"name": user}})
    auth = signing.subscription(application, socket_id, channel, member)
    message = {"event": "pusher:subscribe", "data": {"channel": channel, "auth": auth, "channel_data": member}}
    return connections.text(json.dumps(message).encode())
