"""Requests that schemathesis makes up from the description, good and bad ones, signed and sent to a real server.

No answer is a fault of the server, and none is one that the description does not know.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi import checks

from fanfare.api import openapi
from tests.harness import deployments, servers, signing

EXAMPLES = 40  # for each of the nine operations: all of them in about 20 s

# What these three find is wanted; tests/unit/api has tests of their subjects.
NOT_FOR_US = [
    checks.ignored_auth,  # every request is signed, whatever it had before
    checks.negative_data_rejection,  # an unknown parameter and a null are ignored, as the vendor does
    checks.positive_data_acceptance,  # which attributes a channel has depends on its name; no schema says that
]

schema = schemathesis.openapi.from_dict(openapi.document())


class Signature(requests.auth.AuthBase):
    """Signs what is really sent, after schemathesis has written it down."""

    def __init__(self, application: deployments.Application) -> None:
        self.application = application

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        assert request.url is not None
        assert request.method is not None
        url = urlsplit(request.url)
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        own = [pair for pair in parse_qsl(url.query, keep_blank_values=True) if pair[0].lower() not in SIGNING]
        pairs = [
            *own,
            ("auth_key", self.application.key),
            ("auth_timestamp", str(int(time.time()))),
            ("auth_version", "1.0"),
            ("body_md5", hashlib.md5(body, usedforsecurity=False).hexdigest()),
        ]
        ordered = sorted(((name.lower(), value) for name, value in pairs), key=lambda pair: pair[0])
        text = "\n".join([request.method, unquote(url.path), "&".join(f"{name}={value}" for name, value in ordered)])
        signature = signing.hexadecimal(self.application.secret, text)
        query = urlencode([*pairs, ("auth_signature", signature)], quote_via=quote)
        request.url = urlunsplit(url._replace(query=query))
        return request


SIGNING = {"auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"}


@pytest.fixture(scope="module")
def session(uvicorn: servers.Server) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.auth = Signature(uvicorn.application)
        yield session


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_described(
    case: schemathesis.Case, uvicorn: servers.Server, session: requests.Session
) -> None:
    if "app_id" in case.path_parameters:
        case.path_parameters["app_id"] = uvicorn.application.id
    response = case.call(base_url=uvicorn.url().rstrip("/"), session=session)
    assert response.status_code != 401, "the test signs wrongly, and would prove nothing"
    case.validate_response(response, excluded_checks=NOT_FOR_US)
