from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from fanfare.engine import errors
from fanfare.server import boot


def test_asgi_process_keeps_no_connection_after_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 60)
    boot.close_connections_after_requests()
    assert connections.settings["default"]["CONN_MAX_AGE"] == 0
    assert connections["default"].settings_dict["CONN_MAX_AGE"] == 0


@pytest.mark.parametrize("kind", [ImproperlyConfigured, errors.EngineMisconfigured])
def test_wrong_settings_end_the_process_with_their_sentence(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, boot.or_end():
        raise kind("FANFARE_SYNC is 'never'; it must be one of normal, full.")
    assert ended.value.code == 3
    assert capsys.readouterr().err == "FANFARE_SYNC is 'never'; it must be one of normal, full.\n"
