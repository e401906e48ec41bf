"""Finds the primary, with the answers of all sentinels."""

from __future__ import annotations

from typing import Any, Final

import redis.exceptions
import redis.sentinel

from fanfare.engine import errors
from fanfare.engine.redis import address

ANSWER_S: Final = 1.0  # a sentinel answers from memory


class Sentinels:
    """Connections to the sentinels of an address, opened at the first use and kept. Used in threads."""

    def __init__(self, where: address.Address) -> None:
        self._where = where
        options = where.options(ANSWER_S)
        options |= {"username": where.sentinel_user or None, "password": where.sentinel_password or None, "db": 0}
        options["socket_connect_timeout"] = ANSWER_S
        make: Any = redis.sentinel.Sentinel  # it has no annotations
        self._clients: list[Any] = make(list(where.hosts), sentinel_kwargs=options).sentinels

    def primary(self) -> tuple[str, int]:
        """The primary of the newest configuration that a sentinel knows. Raises EngineUnavailable.

        Each failover has a larger epoch. A sentinel that was cut off still names the previous primary, which may run
        and take writes until a sentinel demotes it, which takes 10 s.
        """
        newest: tuple[int, str, int] | None = None
        failure: Exception | None = None
        for client in self._clients:
            try:
                state = client.sentinel_master(self._where.service)
                known = int(state["config-epoch"]), str(state["ip"]), int(state["port"])
            except (redis.exceptions.RedisError, OSError) as error:
                failure = error
                continue
            if newest is None or known > newest:
                newest = known
        if newest is None:
            reason = f"No sentinel names the primary of {self._where.service}: {address.describe(failure)}"
            if type(failure) is redis.exceptions.ResponseError:  # another service, or no sentinel
                reason += "; FANFARE_ENGINE=redis+sentinel://… names sentinels and, after the slash, their service"
            raise errors.EngineUnavailable(reason)
        return newest[1:]

    def close(self) -> None:
        for client in self._clients:
            client.close()
