from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from fanfare import data_folder


def test_missing_folder_is_created_for_its_owner_only(tmp_path: Path):
    folder = data_folder.prepare(tmp_path / "a" / "b")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_folder_that_cannot_be_created_is_named_in_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ImproperlyConfigured, match=r"FANFARE_DATA_DIR is '.*file/var', which cannot be created: Not a dir"
    ):
        data_folder.prepare(tmp_path / "file" / "var")


def test_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(data_folder.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ImproperlyConfigured, match="which this user may not write to"):
        data_folder.prepare(tmp_path)


def test_secret_key_is_created_once_and_readable_by_its_owner_only(tmp_path: Path):
    key = data_folder.secret_key(tmp_path)
    assert len(key) >= 50
    assert data_folder.secret_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "secret_key").stat().st_mode) == 0o600


def test_key_that_a_crash_cut_short_is_replaced(tmp_path: Path):
    (tmp_path / "secret_key").write_text("half")
    assert len(data_folder.secret_key(tmp_path)) >= 50


def test_four_processes_that_start_together_have_one_key(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        keys = pool.map(data_folder.secret_key, [tmp_path] * 16, chunksize=1)
        pool.close()
        pool.join()
    assert len(set(keys)) == 1


def test_engine_that_machines_share_needs_a_secret_key_that_they_share(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FANFARE_ENGINE", "postgres://me:hush@db/realtime")
    with pytest.raises(ImproperlyConfigured, match="set FANFARE_SECRET_KEY to the same value") as caught:
        data_folder.secret_key(tmp_path)
    assert "hush" not in str(caught.value)
