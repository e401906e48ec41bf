"""A project of the usual difficulties: an `apps` package of its own, a user model with an email and a UUID in place of
a username and a number, login required everywhere, URLs by language, Django REST framework, persistent connections,
atomic requests.
"""

from __future__ import annotations

import asyncio
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import guides, packages, sockets
from tests.unit.docs import pages

GUIDE = pages.ROOT / "docs/how-to/existing-project.md"

SETTINGS = """
INSTALLED_APPS += ["fanfare", "rest_framework", "apps.people"]
AUTH_USER_MODEL = "people.Person"
MIDDLEWARE.insert(4, "django.middleware.locale.LocaleMiddleware")
MIDDLEWARE.append("django.contrib.auth.middleware.LoginRequiredMiddleware")
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
DATABASES["default"] |= {"CONN_MAX_AGE": 600, "ATOMIC_REQUESTS": True}
REST_FRAMEWORK = {"DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.SessionAuthentication"]}
CSRF_TRUSTED_ORIGINS = ["http://127.0.0.1"]
"""

MODELS = """
import uuid

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models


class People(BaseUserManager):
    def create_user(self, email, password=None):
        person = self.model(email=email)
        person.set_password(password)
        person.save()
        return person


class Person(AbstractBaseUser, PermissionsMixin):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField(unique=True)
    is_staff = models.BooleanField(default=False)
    USERNAME_FIELD = "email"
    objects = People()
"""

CHANNELS = """
from fanfare import channel


@channel("private-person-{pk:uuid}")
def own(user, pk):
    return user.pk == pk


@channel("presence-people")
def people(user):
    return {"email": user.email}
"""

VIEWS = """
from django.shortcuts import render
from rest_framework.decorators import api_view
from rest_framework.response import Response

from fanfare import publish


def page(request):
    return render(request, "people/page.html")


@api_view(["POST"])
def notify(request):
    publish(None, "note", {"text": request.data["text"]}, to_user=request.user)
    publish(f"private-person-{request.user.pk}", "note", {"text": request.data["text"]})
    return Response({"user": str(request.user.pk)})
"""

URLS = """
from django.conf.urls.i18n import i18n_patterns
from django.contrib import admin
from django.urls import include, path

from apps.people import views

urlpatterns = [path("api/notify/", views.notify), path("", include("fanfare.urls"))]
urlpatterns += i18n_patterns(path("admin/", admin.site.urls), path("page/", views.page))
"""

LOGIN = """
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from apps.people.models import Person
person = Person.objects.create_user("ann@example.org", "secret")
session = SessionStore()
session[SESSION_KEY] = str(person.pk)
session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
session[HASH_SESSION_KEY] = person.get_session_auth_hash()
session.save()
print(session.session_key, person.pk)
"""


@pytest.fixture(scope="module")
def site(built: packages.Built, tmp_path_factory: pytest.TempPathFactory) -> packages.Site:
    requirements = [str(built.wheel), "django~=5.2.0", "djangorestframework"]
    return packages.Site(tmp_path_factory.mktemp("host") / "venv", requirements)


@pytest.fixture
def reader(site: packages.Site, tmp_path: Path) -> Iterator[guides.Reader]:
    with guides.reader(site, tmp_path) as found:
        root = found.root
        people = root / "apps/people"
        (people / "templates/people").mkdir(parents=True)
        (root / "apps/__init__.py").touch()
        (people / "__init__.py").touch()
        for name, text in (("models", MODELS), ("channels", CHANNELS), ("views", VIEWS)):
            (people / f"{name}.py").write_text(text)
        (people / "templates/people/page.html").write_text("{% load fanfare %}{% fanfare_client sign_in=True %}")
        with (root / "mysite/settings.py").open("a") as settings:
            settings.write(SETTINGS)
        (root / "mysite/urls.py").write_text(URLS)
        (asgi,) = [block for _, block in pages.steps(GUIDE) if block.file == "mysite/asgi.py"]
        found.write(asgi)
        yield found


async def test_everything_works_in_a_project_of_the_usual_difficulties(reader: guides.Reader) -> None:
    reader.manage("makemigrations", "people", "--verbosity", "0")
    reader.follow(GUIDE, "3. Create the tables and an application")
    assert "no issues" in reader.manage("check")
    session, pk = reader.manage("shell", "-c", textwrap.dedent(LOGIN)).split()[-2:]
    assert reader.application is not None
    (command, *_) = guides.commands(GUIDE, "uvicorn")
    process = await asyncio.to_thread(reader.serve, command)

    # A visitor without a session is sent to the login page, and may not authorize.
    status, _, headers = process.get("/en/page/")
    assert (status, headers["location"].partition("?")[0]) == (302, "/accounts/login/")
    status, _, headers = process.request("POST", "/pusher/auth")
    assert status == 403
    assert headers["content-type"].startswith("application/json")

    cookie = f"sessionid={session}"
    status, page, headers = process.request("GET", "/de/page/", headers={"Cookie": cookie})
    (text,) = re.findall(r'<script id="fanfare-config" type="application/json">(.*?)</script>', page)
    config = json.loads(text)
    token = config["csrfToken"]
    signed_in = {
        "Cookie": f"{cookie}; {guides.cookies(headers)}",
        "X-CSRFToken": token,
        "Content-Type": "application/x-www-form-urlencoded",
    }

    def ask(endpoint: str, **form: str) -> dict[str, str]:
        body = "&".join(f"{name}={value}" for name, value in form.items()).encode()
        status, answer, _ = process.request("POST", endpoint, body, signed_in)
        assert status == 200, answer
        found: dict[str, str] = json.loads(answer)
        return found

    async with sockets.connect(  # type: ignore[arg-type]
        process, url=process.socket_url(reader.application), application=reader.application
    ) as socket:
        user = await asyncio.to_thread(ask, config["userAuthEndpoint"], socket_id=socket.socket_id)
        assert json.loads(user["user_data"])["id"] == pk
        await socket.send({"event": "pusher:signin", "data": user})
        await socket.expect("pusher:signin_success")
        await socket.request_subscription(f"#server-to-user-{pk}")  # as pusher-js does
        await socket.expect("pusher_internal:subscription_succeeded", f"#server-to-user-{pk}")

        own = f"private-person-{pk}"
        auth = await asyncio.to_thread(ask, config["authEndpoint"], socket_id=socket.socket_id, channel_name=own)
        await socket.request_subscription(own, auth=auth["auth"])
        await socket.expect("pusher_internal:subscription_succeeded", own)
        auth = await asyncio.to_thread(
            ask, config["authEndpoint"], socket_id=socket.socket_id, channel_name="presence-people"
        )
        member = json.loads(auth["channel_data"])
        assert (member["user_id"], member["user_info"]) == (pk, {"email": "ann@example.org"})

        answer = await asyncio.to_thread(
            process.request,
            "POST",
            "/api/notify/",
            json.dumps({"text": "hello"}).encode(),
            {**signed_in, "Content-Type": "application/json"},
        )
        assert json.loads(answer[1]) == {"user": pk}
        events = {(frame.event, frame.decoded["text"]) for frame in [await socket.receive(), await socket.receive()]}
        assert events == {("note", "hello")}
    assert process.get("/de/admin/login/")[0] == 200
    assert "Traceback" not in process.log_text()
