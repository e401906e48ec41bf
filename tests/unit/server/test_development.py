from __future__ import annotations

import sys

import pytest
from django.template import autoreload

from fanfare.server import boot, development, root_path

WIRED = "import fanfare.asgi\n\napplication = fanfare.asgi.application()\n"
PLAIN = "from django.core.asgi import get_asgi_application\n\napplication = get_asgi_application()\n"


@pytest.fixture
def project(tmp_path, monkeypatch, settings):
    """Makes a package with this asgi.py, beside settings of one file or of several."""

    def make(asgi, *, settings_module="shopping.settings"):
        package = tmp_path / "shopping"
        package.mkdir()
        (package / "__init__.py").touch()
        if asgi is not None:
            (package / "asgi.py").write_text(asgi)
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("shopping", "shopping.asgi"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setenv("DJANGO_SETTINGS_MODULE", settings_module)
        settings.ASGI_APPLICATION = None

    return make


@pytest.mark.parametrize("module", ["shopping.settings", "shopping.settings.local"])
def test_the_asgi_module_is_found_beside_the_settings(project, module):
    project(WIRED, settings_module=module)
    assert development.project_target() == "shopping.asgi.application"
    assert development.hint() == ""
    assert isinstance(development.application(), root_path.RootPath)


def test_the_asgi_application_of_the_settings_wins(project, settings):
    project(WIRED)
    settings.ASGI_APPLICATION = "shop.routing.application"
    assert development.project_target() == "shop.routing.application"


def test_an_asgi_module_without_fanfare_gets_it_and_a_hint(project):
    project(PLAIN)
    assert "application = fanfare.asgi.application()" in development.hint()
    assert isinstance(development.application(), root_path.RootPath)


def test_a_project_without_an_asgi_module_is_served(project):
    project(None)
    assert development.project_target() == ""
    assert development.hint() == ""
    assert isinstance(development.application(), root_path.RootPath)


async def test_with_debug_the_templates_are_read_again_for_each_request(settings, monkeypatch):
    resets = []
    monkeypatch.setattr(autoreload, "reset_loaders", lambda: resets.append(1))

    async def django(scope, receive, send): ...

    settings.DEBUG = False
    assert boot.fresh_templates(django) is django
    settings.DEBUG = True
    fresh = boot.fresh_templates(django)
    for _ in range(2):
        await fresh({"type": "http"}, None, None)
    assert resets == [1, 1]
