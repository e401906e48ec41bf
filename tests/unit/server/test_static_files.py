from __future__ import annotations

import pytest
from asgiref.testing import ApplicationCommunicator

from fanfare.server import static_files

PATIENCE_S = 20.0  # the first request with DEBUG searches the folders of all apps


async def fallback(scope, receive, send):
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"from Django"})


async def get(application, path, method="GET", **more):
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], "extensions": {}}
    scope |= more
    communicator = ApplicationCommunicator(application, scope)
    await communicator.send_input({"type": "http.request", "body": b"", "more_body": False})
    start = await communicator.receive_output(PATIENCE_S)
    body = b""
    while True:
        message = await communicator.receive_output(PATIENCE_S)
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await communicator.wait(PATIENCE_S)
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
async def test_every_other_path_goes_to_django(application, path):
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


async def test_file_that_is_replaced_under_a_running_worker_has_its_new_length(settings, tmp_path):
    settings.DEBUG = False
    settings.STATIC_ROOT = tmp_path
    file, other = tmp_path / "app.js", tmp_path / "gone.js"
    for one in (file, other):
        one.write_text("old")
    application = static_files.StaticFiles(fallback)
    _, before, _ = await get(application, "/static/app.js")
    file.write_text("new and longer")
    other.unlink()
    status, headers, body = await get(application, "/static/app.js", headers=[(b"if-none-match", before[b"etag"])])
    assert (status, headers[b"content-length"], body) == (200, b"14", b"new and longer")
    assert headers[b"etag"] != before[b"etag"]
    assert (await get(application, "/static/gone.js"))[0] == 404
    other.write_text("back")  # as collectstatic does, which deletes a file before it writes the new one
    assert (await get(application, "/static/gone.js"))[2] == b"back"


async def test_a_file_that_only_a_finder_knows_is_found_with_debug(settings, tmp_path, monkeypatch):
    """A finder of another package may have no storage whose folder could be read."""
    settings.DEBUG = True
    (tmp_path / "a.css").write_text("a {}")
    monkeypatch.setattr(
        static_files.finders, "find", lambda name: str(tmp_path / "a.css") if name == "made/a.css" else None
    )
    application = static_files.StaticFiles(fallback)
    assert (await get(application, "/static/made/a.css"))[2] == b"a {}"


@pytest.mark.parametrize(
    ("values", "is_ours"),
    [
        ({"STATIC_URL": "static/"}, True),
        ({"STATIC_URL": "/assets/"}, True),
        ({"STATIC_URL": "https://cdn.example.com/static/"}, False),
        ({"MIDDLEWARE": ["servestatic.middleware.ServeStaticMiddleware"]}, False),
        ({"MIDDLEWARE": ["whitenoise.middleware.WhiteNoiseMiddleware"]}, True),
    ],
)
async def test_a_project_that_serves_its_files_otherwise_keeps_its_way(settings, values, is_ours):
    settings.DEBUG = False
    for name, value in values.items():
        setattr(settings, name, value)
    assert isinstance(static_files.before(fallback), static_files.StaticFiles) == is_ours


@pytest.mark.parametrize("is_on", [True, False])
async def test_browsers_may_not_guess_the_type_of_a_file(settings, is_on):
    settings.SECURE_CONTENT_TYPE_NOSNIFF = is_on
    _, headers, _ = await get(static_files.before(fallback), "/static/admin/css/base.css")
    assert headers.get(b"x-content-type-options") == (b"nosniff" if is_on else None)


async def test_the_settings_of_whitenoise_hold(settings, tmp_path):
    """WhiteNoise itself reads a whole file for each request under ASGI."""
    settings.DEBUG = False
    settings.MIDDLEWARE = ["whitenoise.middleware.WhiteNoiseMiddleware"]
    settings.WHITENOISE_MAX_AGE = 7
    settings.WHITENOISE_IMMUTABLE_FILE_TEST = lambda path, url: "/admin/img/" in url
    application = static_files.before(fallback)
    _, headers, _ = await get(application, "/static/admin/css/base.css")
    assert headers[b"cache-control"] == b"max-age=7, public"
    assert headers[b"access-control-allow-origin"] == b"*"
    _, headers, _ = await get(application, "/static/admin/img/icon-yes.svg")
    assert b"immutable" in headers[b"cache-control"]


async def test_below_a_root_path_the_files_are_the_same(application):
    scope = {"root_path": "/rt"}
    assert (await get(application, "/rt/static/admin/css/base.css", **scope))[0] == 200
    status, _, body = await get(application, "/rt/page", **scope)
    assert (status, body) == (404, b"from Django")
