"""Encrypted channels. That others read what we encrypt, and we what they do, is told by the vendor's own library."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from nacl import secret
from pusher import crypto

from fanfare import decrypt, publish
from fanfare.applications import models
from fanfare.integration import encryption, errors
from tests.unit.integration import recording

NAME = "private-encrypted-orders-7"
KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def master_key(settings: Any) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": KEY}


@pytest.mark.parametrize("text", ['{"id":7}', "", "plain", "é☃\U0001f600", "x" * 5_000])
def test_what_was_encrypted_is_read_again_and_by_the_vendors_library(text: str) -> None:
    data = encryption.encrypt(NAME, text)
    assert decrypt(NAME, data) == text
    parts = {name: base64.b64decode(value) for name, value in json.loads(data).items()}
    assert sorted(parts) == ["ciphertext", "nonce"]
    box = secret.SecretBox(crypto.generate_shared_secret(NAME.encode(), KEY))
    assert box.decrypt(parts["ciphertext"], parts["nonce"]).decode() == text


def test_what_the_vendors_library_encrypted_is_read() -> None:
    data = json.dumps(crypto.encrypt(NAME, '{"id":7}', KEY))
    assert decrypt(NAME, data) == '{"id":7}'


def test_no_two_events_look_alike() -> None:
    assert encryption.encrypt(NAME, "same") != encryption.encrypt(NAME, "same")


@pytest.mark.parametrize(
    "data",
    [
        '{"nonce":"AAAA","ciphertext":"AAAA"}',
        '{"nonce":1,"ciphertext":2}',
        '{"nonce":"*","ciphertext":"*"}',
        json.dumps({"nonce": "A" * 32, "ciphertext": "A" * 40}),
        "{}",
        "[]",
        "null",
        "not JSON",
    ],
)
def test_what_cannot_be_read_is_said_to_be_so(data: str) -> None:
    with pytest.raises(errors.Undecipherable, match=NAME):
        decrypt(NAME, data)


def test_another_channels_data_cannot_be_read() -> None:
    with pytest.raises(errors.Undecipherable):
        decrypt(NAME, encryption.encrypt("private-encrypted-orders-8", "text"))


# -- publish() ---------------------------------------------------------------------------------------------------------


def test_an_event_leaves_as_a_ciphertext(log: recording.Recording, application: models.Application) -> None:
    publish(NAME, "created", {"id": 7}, on_commit=False)
    [event] = log.events
    assert sorted(json.loads(event.data)) == ["ciphertext", "nonce"]
    assert decrypt(NAME, event.data) == '{"id":7}'


def test_other_channels_stay_as_they_are(
    log: recording.Recording, application: models.Application, settings: Any
) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": b""}
    publish("private-orders-7", "created", {"id": 7}, on_commit=False)
    assert [event.data for event in log.events] == ['{"id":7}']


def test_without_a_key_nothing_leaves(log: recording.Recording, application: models.Application, settings: Any) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": b""}
    with pytest.raises(errors.NoMasterKey, match="FANFARE_ENCRYPTION_MASTER_KEY"):
        publish(NAME, "created", {"id": 7}, on_commit=False)
    assert log.events == []


def test_the_limit_is_for_what_is_sent(log: recording.Recording, application: models.Application) -> None:
    with pytest.raises(errors.DataTooLarge) as caught:
        publish(NAME, "created", "x" * 90_000, on_commit=False)
    assert caught.value.size > 120_000


def test_missing_pynacl_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nacl", None)
    for call in (encryption.encrypt, encryption.decrypt):
        with pytest.raises(ImproperlyConfigured, match=r'needs PyNaCl: pip install "django-fanfare\[encryption\]"'):
            call(NAME, "{}")
    assert encryption.shared_secret(NAME), "a visitor is authorized without it"
