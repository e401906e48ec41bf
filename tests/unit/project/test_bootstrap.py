from __future__ import annotations

import stat
import subprocess
import sys

import pytest

from myproject import bootstrap


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project of its own, whose pip is recorded instead of run."""
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "FOLDER", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    (tmp_path / "base.txt").write_text("django\n")
    (tmp_path / "all.txt").write_text("-r base.txt\npytest\n")
    return tmp_path


@pytest.fixture
def installed(place, monkeypatch):
    calls = []
    real = subprocess.run

    def run(command, **options):
        if "pip" in command:
            calls.append([part for part in command if part.endswith(".txt")])
            return subprocess.CompletedProcess(command, 0)
        if "venv" in command:
            command = [*command, "--without-pip"]  # which makes it a second faster; nothing is installed here
        return real(command, **options)

    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    return calls


def test_the_environment_is_made_and_filled_once(place, installed):
    bootstrap.main(["base.txt"])
    assert bootstrap.runs(bootstrap.PYTHON)
    bootstrap.main(["base.txt"])
    assert installed == [[str(place / "base.txt")]]


def test_a_changed_requirement_is_installed_wherever_it_is_included(place, installed):
    bootstrap.main(["all.txt"])
    (place / "base.txt").write_text("django==5.2\n")
    bootstrap.main(["all.txt"])
    assert len(installed) == 2


def test_an_environment_that_was_copied_from_elsewhere_is_replaced(place, installed):
    bootstrap.main(["base.txt"])
    bootstrap.PYTHON.unlink()
    bootstrap.PYTHON.symlink_to("/nonexistent/python")
    bootstrap.main(["base.txt"])
    assert bootstrap.runs(bootstrap.PYTHON)


def test_an_old_python_is_one_sentence(monkeypatch):
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"^Fanfare needs Python 3\.11 or later; .* is "):
        bootstrap.main([])


def test_a_newer_python_beside_an_old_one_takes_over(monkeypatch):
    class Replaced(Exception):
        pass

    def execv(path, arguments):
        raise Replaced(arguments)

    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: sys.executable if name == "python3.12" else None)
    monkeypatch.setattr(bootstrap.os, "execv", execv)
    with pytest.raises(Replaced, match=r"'-m', 'myproject\.bootstrap'"):
        bootstrap.main([])


def test_a_folder_that_cannot_be_written_is_one_sentence(place, monkeypatch):
    def fail(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "Error: [Errno 13] Permission denied: '.venv'")

    monkeypatch.setattr(bootstrap.subprocess, "run", fail)
    monkeypatch.setattr(bootstrap.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(SystemExit, match=r"cannot be written by this user, so \.venv cannot be made there\.$"):
        bootstrap.main(["base.txt"])


def test_a_python_without_ensurepip_is_one_sentence(place, monkeypatch):
    def fail(command, **options):
        return subprocess.CompletedProcess(command, 1, "The virtual environment was not created: no ensurepip", "")

    monkeypatch.setattr(bootstrap.subprocess, "run", fail)
    with pytest.raises(SystemExit, match="python3-venv"):
        bootstrap.main(["base.txt"])
    assert not bootstrap.FOLDER.exists()


def test_a_pip_that_fails_leaves_no_stamp(place, installed, monkeypatch):
    recorded = bootstrap.subprocess.run

    def run(command, **options):
        if "pip" in command:
            return subprocess.CompletedProcess(command, 1)
        return recorded(command, **options)

    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    with pytest.raises(SystemExit, match="could not be installed"):
        bootstrap.main(["base.txt"])
    assert not list(bootstrap.FOLDER.glob("installed-*"))


def test_it_needs_nothing_but_the_standard_library():
    found = subprocess.run(
        [sys.executable, "-I", "-S", str(bootstrap.__file__), "--nothing"], capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError" not in found.stderr


def test_manage_py_can_be_executed():
    assert (bootstrap.ROOT / "manage.py").stat().st_mode & stat.S_IXUSR
