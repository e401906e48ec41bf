"""A request that was let in: signed, its body read and verified."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from fanfare.api import errors
from fanfare.applications import registry

SMALL_BODY_BYTES = 1_024  # what has no parameters in its body: some clients send an empty JSON object


def small_body_limit(limits: registry.Limits) -> int:
    return SMALL_BODY_BYTES


class Request(NamedTuple):
    application: registry.Application
    names: dict[str, str]  # the parts of the path that vary, decoded
    query: dict[str, Any]  # str or list[str], without what signed the request
    body: bytes
    idempotency_key: str | None  # the header's

    def fields(self) -> dict[str, Any]:
        """The parameters of an operation: the body's JSON object, over the query's. Raises Invalid."""
        if not self.body:
            return self.query
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise errors.Invalid(f"The request's body is not valid JSON: {error}.", code="invalid_json") from None
        if not isinstance(value, dict):
            raise errors.Invalid("The request's body must be a JSON object.", code="invalid_json")
        return {**self.query, **value} if self.query else value
