from __future__ import annotations

import pytest
from asgiref.testing import ApplicationCommunicator

from fanfare.server import static_files


async def fallback(scope, receive, send):
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"from Django"})


async def get(application, path, method="GET"):
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], "extensions": {}}
    communicator = ApplicationCommunicator(application, scope)
    await communicator.send_input({"type": "http.request", "body": b"", "more_body": False})
    start = await communicator.receive_output()
    body = b""
    while True:
        message = await communicator.receive_output()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await communicator.wait()
    return start["status"], dict(start["headers"]), body


@pytest.fixture(params=[True, False], ids=["with DEBUG", "without DEBUG"])
def application(request, settings, tmp_path):
    settings.DEBUG = request.param
    settings.STATIC_ROOT = tmp_path / "nothing was collected here"
    return static_files.StaticFiles(fallback)


async def test_the_admin_has_its_style_though_nothing_was_collected(application):
    status, headers, body = await get(application, "/static/admin/css/base.css")
    assert status == 200
    assert headers[b"content-type"].startswith(b"text/css")
    assert b"body" in body


async def test_a_browser_asks_again_soon(application, settings):
    _, headers, _ = await get(application, "/static/admin/css/base.css")
    assert headers[b"cache-control"] == (b"max-age=0, public" if settings.DEBUG else b"max-age=60, public")
    assert b"last-modified" in headers


@pytest.mark.parametrize(
    "path", ["/", "/static/", "/static/no/such.css", "/static/../manage.py", "/static/%2e%2e/x", "/staticfiles/a.css"]
)
async def test_everything_else_is_for_django(application, path):
    status, _, body = await get(application, path)
    assert (status, body) == (404, b"from Django")


async def test_a_file_that_is_new_is_seen_at_once_with_debug(settings, tmp_path):
    settings.DEBUG = True
    settings.STATICFILES_DIRS = [tmp_path]
    from django.contrib.staticfiles import finders

    finders.get_finder.cache_clear()
    try:
        application = static_files.StaticFiles(fallback)
        (tmp_path / "new.css").write_text("a {}")
        assert (await get(application, "/static/new.css"))[2] == b"a {}"
        (tmp_path / "new.css").write_text("b {}")
        assert (await get(application, "/static/new.css"))[2] == b"b {}"
    finally:
        finders.get_finder.cache_clear()
