from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import fanfare


def test_importing_the_package_imports_no_models() -> None:
    """Django imports it while it looks for apps, when no model can be imported yet."""
    code = "import sys, fanfare; print(sorted(name for name in sys.modules if name.startswith('django')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", fanfare.__all__)
def test_every_promised_name_is_there(name: str) -> None:
    assert getattr(fanfare, name) is getattr(importlib.import_module(fanfare._HOMES[name]), name)


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match="unpublish"):
        _ = fanfare.unpublish
