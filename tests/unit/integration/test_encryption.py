"""Encrypted channels, compared with the vendor's own Python library in both directions."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from nacl import secret
from pusher import crypto

from fanfare import decrypt, errors, publish
from fanfare.applications import models
from fanfare.integration import payloads
from tests.unit.integration import recording

NAME = "private-encrypted-orders-7"
KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def master_key(settings: Any) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": KEY}


@pytest.mark.parametrize("text", ['{"id":7}', "", "plain", "é☃\U0001f600", "x" * 5_000])
def test_encrypted_text_is_decrypted_by_us_and_by_the_vendor_library(text: str) -> None:
    data = payloads.encrypt(NAME, text)
    assert decrypt(NAME, data) == text
    parts = {name: base64.b64decode(value) for name, value in json.loads(data).items()}
    assert sorted(parts) == ["ciphertext", "nonce"]
    box = secret.SecretBox(crypto.generate_shared_secret(NAME.encode(), KEY))
    assert box.decrypt(parts["ciphertext"], parts["nonce"]).decode() == text


def test_data_of_the_vendor_library_is_decrypted() -> None:
    data = json.dumps(crypto.encrypt(NAME, '{"id":7}', KEY))
    assert decrypt(NAME, data) == '{"id":7}'


def test_same_text_has_a_different_ciphertext_each_time() -> None:
    assert payloads.encrypt(NAME, "same") != payloads.encrypt(NAME, "same")


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
def test_data_that_cannot_be_decrypted_is_refused(data: str) -> None:
    with pytest.raises(errors.DecryptionFailed, match=NAME):
        decrypt(NAME, data)


def test_data_of_another_channel_is_refused() -> None:
    with pytest.raises(errors.DecryptionFailed):
        decrypt(NAME, payloads.encrypt("private-encrypted-orders-8", "text"))


# -- publish() ---------------------------------------------------------------------------------------------------------


def test_publish_encrypts_on_an_encrypted_channel(log: recording.Recording, application: models.Application) -> None:
    publish(NAME, "created", {"id": 7}, on_commit=False)
    [event] = log.events
    assert sorted(json.loads(event.data)) == ["ciphertext", "nonce"]
    assert decrypt(NAME, event.data) == '{"id":7}'


def test_publish_does_not_encrypt_on_other_channels(
    log: recording.Recording, application: models.Application, settings: Any
) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": b""}
    publish("private-orders-7", "created", {"id": 7}, on_commit=False)
    assert [event.data for event in log.events] == ['{"id":7}']


def test_publish_without_a_master_key_is_refused(
    log: recording.Recording, application: models.Application, settings: Any
) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": b""}
    with pytest.raises(errors.NoMasterKey, match="FANFARE_ENCRYPTION_MASTER_KEY"):
        publish(NAME, "created", {"id": 7}, on_commit=False)
    assert log.events == []


def test_size_limit_holds_for_the_ciphertext(log: recording.Recording, application: models.Application) -> None:
    with pytest.raises(errors.DataTooLarge) as caught:
        publish(NAME, "created", "x" * 90_000, on_commit=False)
    assert caught.value.size > 120_000


def test_missing_pynacl_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nacl", None)
    for call in (payloads.encrypt, payloads.decrypt):
        with pytest.raises(ImproperlyConfigured, match=r'needs PyNaCl: pip install "django-fanfare\[encryption\]"'):
            call(NAME, "{}")
    assert payloads.shared_secret(NAME), "a visitor is authorized without it"
