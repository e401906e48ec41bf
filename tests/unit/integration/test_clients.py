from __future__ import annotations

from typing import Any

import pytest
from django.test import RequestFactory

from fanfare.applications import models
from fanfare.integration import clients


@pytest.mark.parametrize(
    ("host", "secure", "address"),
    [
        ("localhost:8000", False, ("localhost", 8000, False)),
        ("localhost", False, ("localhost", 80, False)),
        ("localhost", True, ("localhost", 443, True)),
        ("127.0.0.1:9000", True, ("127.0.0.1", 9000, True)),
        ("[::1]:8000", False, ("[::1]", 8000, False)),
        ("[::1]", False, ("[::1]", 80, False)),
    ],
)
def test_options_name_the_host_and_port_of_the_request(
    application: models.Application, host: str, secure: bool, address: tuple[str, int, bool]
) -> None:
    request = RequestFactory().get("/", secure=secure, headers={"Host": host})
    answer = clients.pusher_options(request)
    options: dict[str, Any] = answer["options"]
    assert answer["key"] == "key-7"
    assert (options["wsHost"], options["wsPort"], options["forceTLS"]) == address
    assert options["wssPort"] == options["wsPort"]
    assert "secret-7" not in str(answer)
