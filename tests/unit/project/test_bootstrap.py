from __future__ import annotations

import runpy
import stat
import subprocess
import sys
import types

import pytest

from tests.harness import deployments

SCRIPT = deployments.REPOSITORY / "deploy" / "bootstrap.py"


@pytest.fixture
def bootstrap():
    """The script as a module of its own for each test."""
    module = types.ModuleType("bootstrap")
    module.__dict__.update(runpy.run_path(str(SCRIPT)))
    # Functions of `run_path` see the dict that they were defined in: keep that one, so that a test can change it.
    module.names = module.main.__globals__
    return module


@pytest.fixture
def place(tmp_path, bootstrap):
    """A project in a folder of its own."""
    bootstrap.names.update(ROOT=tmp_path, FOLDER=tmp_path / ".venv", PYTHON=tmp_path / ".venv" / "bin" / "python")
    (tmp_path / "base.txt").write_text("django==5.2\n")
    (tmp_path / "all.txt").write_text("-r base.txt\n# a comment\npytest[x]==9.0  # why\n")
    return tmp_path


@pytest.fixture
def installed(place, bootstrap, monkeypatch):
    """What pip was asked for. The environment is real; pip, and what the environment holds, are not."""
    calls = []
    state = {"versions": {}, "editable": False}
    real = subprocess.run

    def run(command, **options):
        if "venv" in command:
            command = [*command, "--without-pip"]  # a second faster; nothing is installed here
        return real(command, **options)

    def pip(*arguments):
        calls.append([argument.removeprefix(f"{place}/") for argument in arguments])
        if arguments[0] == "--requirement":
            state["versions"] = dict(bootstrap.pins(place / "all.txt"))
        else:
            state["editable"] = place.as_uri()

    monkeypatch.setattr(subprocess, "run", run)
    bootstrap.names.update(pip=pip, look=lambda: state)
    return types.SimpleNamespace(calls=calls, state=state)


def test_environment_is_made_and_filled_once(place, bootstrap, installed):
    bootstrap.main(["base.txt"])
    assert bootstrap.runs(place / ".venv" / "bin" / "python")
    bootstrap.main(["base.txt"])
    assert installed.calls == [["--requirement", "base.txt"], ["--no-deps", "--editable", str(place)]]


def test_changed_pin_of_an_included_file_is_installed(place, bootstrap, installed):
    bootstrap.main(["all.txt"])
    installed.calls.clear()
    (place / "base.txt").write_text("django==5.2.1\n")
    bootstrap.main(["all.txt"])
    assert installed.calls == [["--requirement", "all.txt"]]


@pytest.mark.parametrize("change", ["removed", "other version"])
def test_package_that_another_tool_changed_is_installed_again(place, bootstrap, installed, change):
    bootstrap.main(["all.txt"])
    installed.calls.clear()
    if change == "removed":
        del installed.state["versions"]["django"]
    else:
        installed.state["versions"]["django"] = "4.2"
    bootstrap.main(["all.txt"])
    assert installed.calls == [["--requirement", "all.txt"]]


@pytest.mark.parametrize("editable", [False, "file:///elsewhere"])
def test_project_that_is_not_installed_from_this_folder_is_installed_again(place, bootstrap, installed, editable):
    bootstrap.main(["all.txt"])
    installed.calls.clear()
    installed.state["editable"] = editable
    bootstrap.main(["all.txt"])
    assert installed.calls == [["--no-deps", "--editable", str(place)]]


def test_environment_that_was_copied_from_elsewhere_is_replaced(place, bootstrap, installed):
    bootstrap.main(["base.txt"])
    python = place / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nonexistent/python")
    bootstrap.main(["base.txt"])
    assert bootstrap.runs(python)


def test_pins_are_read_with_extras_comments_and_included_files(place, bootstrap):
    assert bootstrap.pins(place / "all.txt") == [("django", "5.2"), ("pytest", "9.0")]
    wanted = bootstrap.pins(deployments.REPOSITORY / "requirements-dev.txt")
    lines = [
        line
        for name in ("requirements.txt", "requirements-dev.txt")
        for line in (deployments.REPOSITORY / name).read_text().splitlines()
        if "==" in line and not line.startswith("#")
    ]
    assert len(wanted) == len(lines)


def test_environment_of_these_tests_is_complete(bootstrap):
    """The real look at a real environment: this one."""
    bootstrap.names.update(PYTHON=sys.executable)
    found = bootstrap.look()
    assert found["editable"] == deployments.REPOSITORY.as_uri()
    for name, version in bootstrap.pins(deployments.REPOSITORY / "requirements-dev.txt"):
        assert found["versions"][name] == version


def test_old_python_is_refused_in_one_sentence(bootstrap, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SystemExit, match=r"^Fanfare needs Python 3\.11 or later; .* is "):
        bootstrap.main([])


def test_newer_python_of_the_machine_takes_over(bootstrap, monkeypatch):
    class Replaced(Exception):
        pass

    def execv(path, arguments):
        raise Replaced(arguments)

    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr("shutil.which", lambda name: sys.executable if name == "python3.12" else None)
    monkeypatch.setattr("os.execv", execv)
    with pytest.raises(Replaced, match=r"deploy/bootstrap\.py"):
        bootstrap.main([])


def test_folder_that_cannot_be_written_is_named_in_one_sentence(place, bootstrap, monkeypatch):
    def fail(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "Error: [Errno 13] Permission denied: '.venv'")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(SystemExit, match=r"cannot be written by this user, so \.venv cannot be made there\.$"):
        bootstrap.main(["base.txt"])


def test_python_without_ensurepip_is_named_in_one_sentence(place, bootstrap, monkeypatch):
    def fail(command, **options):
        return subprocess.CompletedProcess(command, 1, "The virtual environment was not created: no ensurepip", "")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SystemExit, match="python3-venv"):
        bootstrap.main(["base.txt"])
    assert not (place / ".venv").exists()


def test_failed_pip_ends_the_script(place, bootstrap, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 1))
    bootstrap.names.update(_succeeds=lambda command: True)
    with pytest.raises(SystemExit, match="could not be installed"):
        bootstrap.pip("--requirement", "base.txt")


def test_environment_without_pip_gets_one_when_something_must_be_installed(place, bootstrap, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    bootstrap.names.update(_succeeds=lambda command: False)
    bootstrap.pip("--requirement", "base.txt")
    assert [command[3] if command[2] == "-m" else command[2] for command in commands] == ["ensurepip", "pip"]


def test_script_needs_the_standard_library_only():
    found = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), "--nothing"], capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError" not in found.stderr


def test_manage_py_can_be_executed():
    assert (deployments.REPOSITORY / "manage.py").stat().st_mode & stat.S_IXUSR
