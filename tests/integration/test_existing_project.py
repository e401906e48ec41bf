"""The three ways into a project that exists, as the guides describe them: a fresh `startproject` in an empty folder,
with the built wheel in a fresh virtual environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from websockets.asyncio import client as websockets

from tests.harness import deployments, guides, packages, parts, servers, sockets, waiting
from tests.unit.docs import pages

HOW_TO = pages.ROOT / "docs/how-to"
EXISTING = HOW_TO / "existing-project.md"
BESIDE = HOW_TO / "beside-wsgi.md"
SEPARATE = HOW_TO / "separate-deployment.md"

VIEWS = """
from django.db import transaction
from django.http import JsonResponse
from django.shortcuts import render
from django.views.decorators.csrf import csrf_exempt

from fanfare import publish


@csrf_exempt
def order(request):
    with transaction.atomic():
        publish("orders", "created", {"id": 7})
    return JsonResponse({"path": request.path, "user": str(request.user)})


def page(request):
    return render(request, "orders/page.html")
"""

URLS = """
from django.contrib import admin
from django.urls import include, path

from orders import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("order/", views.order),
    path("page/", views.page),
    path("users/<int:pk>/", lambda request, pk: views.JsonResponse({"user": pk})),
    path("apps/<int:pk>/edit", lambda request, pk: views.JsonResponse({"app": pk})),
    path("apps/<int:pk>/events", lambda request, pk: views.JsonResponse({"events of": pk})),
    path("health/db", lambda request: views.JsonResponse({"db": "ok"})),
    path("api/openapi.json", lambda request: views.JsonResponse({"openapi": "the project's"})),
    path("", lambda request: views.JsonResponse({"page": "home"})),
    path("", include("fanfare.urls")),
]
"""

RULES = """
from fanfare import channel


@channel("private-orders-{name:slug}")
def may_see(user, name, request):
    return request.POST.get("ticket") == name
"""


@pytest.fixture(scope="module")
def site(built: packages.Built, tmp_path_factory: pytest.TempPathFactory) -> packages.Site:
    """The wheel with the servers of its extras."""
    wheel = f"django-fanfare[gunicorn,daphne] @ {built.wheel.as_uri()}"
    return packages.Site(tmp_path_factory.mktemp("servers") / "venv", [wheel, "django~=5.2.0"])


@pytest.fixture(scope="module")
def oldest(built: packages.Built, tmp_path_factory: pytest.TempPathFactory) -> packages.Site:
    """The wheel with the oldest uvicorn of its range, and the worker class for gunicorn that uvicorn recommends."""
    (least,) = re.findall(r'"uvicorn\[standard\]>=([\d.]+)', (pages.ROOT / "pyproject.toml").read_text())
    wheel = f"django-fanfare[gunicorn] @ {built.wheel.as_uri()}"
    wanted = [wheel, "django~=5.2.0", f"uvicorn=={least}", "uvicorn-worker==0.4.0"]
    return packages.Site(tmp_path_factory.mktemp("oldest") / "venv", wanted)


@pytest.fixture
def reader(site: packages.Site, tmp_path: Path) -> Iterator[guides.Reader]:
    with guides.reader(site, tmp_path) as found:
        yield found


def connect(reader: guides.Reader, *, wired: bool = True) -> None:
    """Steps 2 and 3 of the guide, and an app with views, a page and a rule."""
    (reader.root / "orders/templates/orders").mkdir(parents=True)
    (reader.root / "orders/__init__.py").touch()
    (reader.root / "orders/channels.py").write_text(RULES)
    (reader.root / "orders/views.py").write_text(VIEWS)
    (reader.root / "orders/templates/orders/page.html").write_text("{% load fanfare %}{% fanfare_client %}")
    blocks = [block for heading, block in pages.steps(EXISTING) if heading == "2. Connect it" and block.file]
    for block in blocks:
        if "settings" in block.file or ("asgi" in block.file and wired):
            reader.write(block)
    with (reader.root / "mysite/settings.py").open("a") as settings:
        settings.write('\nINSTALLED_APPS += ["orders"]\nCSRF_TRUSTED_ORIGINS = ["http://127.0.0.1"]\n')
    (reader.root / "mysite/urls.py").write_text(URLS)


# A project on Channels, whose `asgi.py` only has Fanfare's call around its router; see docs/how-to/migrate.md.
CONSUMERS = """
from channels.generic.websocket import AsyncJsonWebsocketConsumer


class Orders(AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.channel_layer.group_add("orders", self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard("orders", self.channel_name)

    async def order_placed(self, event):
        await self.send_json({"id": event["id"]})
"""

ROUTER = """
import os

import fanfare.asgi
from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
pages = get_asgi_application()

from orders import consumers

sockets = URLRouter([path("ws/orders/", consumers.Orders.as_asgi())])
application = fanfare.asgi.application(
    ProtocolTypeRouter({"http": pages, "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(sockets))})
)
"""

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 64; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi; access_log off;
    {top}
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""

GROUP_SEND = """
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

async_to_sync(get_channel_layer().group_send)("orders", {"type": "order.placed", "id": 7})
"""


@asynccontextmanager
async def client(
    process: guides.Process, application: deployments.Application, prefix: str = ""
) -> AsyncIterator[sockets.Socket]:
    async with sockets.connect(process, url=process.socket_url(application, prefix), application=application) as socket:  # type: ignore[arg-type]
        yield socket


def page_config(process: guides.Process) -> dict[str, object]:
    """What the template tag gave to the page."""
    _, text, _ = process.get("/page/")
    (found,) = re.findall(r'<script id="fanfare-config" type="application/json">(.*?)</script>', text)
    config: dict[str, object] = json.loads(found)
    return config


async def authorize(process: guides.Process, config: dict[str, object], socket: sockets.Socket, channel: str) -> str:
    """Ask the project's endpoint as pusher-js does. Returns the signature; raises if the rule refuses."""
    _, text, headers = process.get("/page/")
    (token,) = re.findall(r'"csrfToken": "(\w+)"', text)
    status, answer, _ = await asyncio.to_thread(
        process.request,
        "POST",
        str(config["authEndpoint"]),
        f"socket_id={socket.socket_id}&channel_name={channel}&ticket={channel.removeprefix('private-orders-')}".encode(),
        {
            "Content-Type": "application/x-www-form-urlencoded",
            "X-CSRFToken": token,
            "Cookie": guides.cookies(headers),
        },
    )
    assert status == 200, answer
    return str(json.loads(answer)["auth"])


# -- (a) one process serves everything ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [*(line for program in guides.SERVERS for line in guides.commands(EXISTING, program))]
)
async def test_one_process_serves_the_pages_the_sockets_and_the_api(reader: guides.Reader, command: str) -> None:
    connect(reader)
    reader.follow(EXISTING, "3. Create the tables and an application")
    assert reader.application is not None
    application = reader.application
    process = await asyncio.to_thread(reader.serve, command)

    config = page_config(process)
    assert (config["key"], config["options"]["wsPort"]) == (application.key, process.port)  # type: ignore[index]
    async with client(process, application) as socket:
        await socket.subscribe("orders")
        answer = await asyncio.to_thread(process.request, "POST", "/order/")
        assert json.loads(answer[1]) == {"path": "/order/", "user": "AnonymousUser"}
        assert (await socket.expect("created", "orders")).decoded == {"id": 7}

        auth = await authorize(process, config, socket, "private-orders-tea")
        await socket.request_subscription("private-orders-tea", auth=auth)
        await socket.expect("pusher_internal:subscription_succeeded", "private-orders-tea")

    for path, expected in (
        ("/", {"page": "home"}),
        ("/users/5/", {"user": 5}),
        ("/apps/5/edit", {"app": 5}),
        ("/apps/5/events", {"events of": 5}),
        ("/health/db", {"db": "ok"}),
        ("/api/openapi.json", {"openapi": "the project's"}),
    ):
        status, text, _ = process.get(path)
        assert (status, json.loads(text)) == (200, expected), path
    assert process.get(f"/app/{application.key}")[0] == 426
    assert process.get("/app/unknown")[2]["content-type"].startswith("text/html")
    assert process.get("/static/admin/css/base.css")[0] == 200
    assert "fanfare.W010" in packages.run(
        [str(reader.site.python), "-c", CHECK], cwd=reader.root, environment=reader.environment
    )
    assert "Traceback" not in process.log_text()


CHECK = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
django.setup()
from django.core.checks import run_checks
print([(message.id, message.msg) for message in run_checks()])
"""


@pytest.mark.parametrize(
    "command",
    [
        "uvicorn mysite.asgi:application",
        "gunicorn mysite.asgi:application --worker-class uvicorn_worker.UvicornWorker",
    ],
)
async def test_oldest_uvicorn_of_the_range_serves(oldest: packages.Site, tmp_path: Path, command: str) -> None:
    with guides.reader(oldest, tmp_path) as reader:
        connect(reader)
        reader.follow(EXISTING, "3. Create the tables and an application")
        assert reader.application is not None
        process = await asyncio.to_thread(reader.serve, command)
        async with client(process, reader.application) as socket:
            await socket.subscribe("orders")
            await asyncio.to_thread(process.request, "POST", "/order/")
            assert (await socket.expect("created", "orders")).decoded == {"id": 7}
        assert "websockets fanfare" in process.log_text()
        assert "WARNING" not in process.log_text()


async def test_runserver_serves_sockets_in_a_project_that_lists_fanfare_last(reader: guides.Reader) -> None:
    connect(reader, wired=False)
    reader.follow(EXISTING, "3. Create the tables and an application")
    assert reader.application is not None
    process = await asyncio.to_thread(reader.serve, "python manage.py runserver")
    async with client(process, reader.application) as socket:
        await socket.subscribe("orders")
        await asyncio.to_thread(
            reader.manage, "shell", "-c", "import fanfare; fanfare.publish('orders', 'created', {})"
        )
        await socket.expect("created", "orders")
    assert "mysite.asgi.application is an ASGI application without Fanfare" in process.log_text()


async def test_a_channels_project_keeps_its_router_and_its_consumers(reader: guides.Reader) -> None:
    connect(reader)
    (reader.root / "orders/consumers.py").write_text(CONSUMERS)
    (reader.root / "mysite/asgi.py").write_text(ROUTER)
    (layer,) = re.findall(r"^\+(CHANNEL_LAYERS = .+)$", (HOW_TO / "own-consumers.md").read_text(), re.MULTILINE)
    with (reader.root / "mysite/settings.py").open("a") as settings:
        settings.write(f"\n{layer}\n")
    reader.follow(EXISTING, "3. Create the tables and an application")
    assert reader.application is not None
    process = await asyncio.to_thread(reader.serve, "uvicorn mysite.asgi:application --workers 2")
    url = f"ws://{guides.HOST}:{process.port}/ws/orders/"
    async with (
        client(process, reader.application) as socket,
        websockets.connect(url, origin=process.url("").rstrip("/")) as own,
    ):
        await socket.subscribe("orders")
        await asyncio.to_thread(process.request, "POST", "/order/")
        await socket.expect("created", "orders")
        await asyncio.to_thread(reader.manage, "shell", "-c", GROUP_SEND)
        async with asyncio.timeout(guides.STOP_S):
            assert json.loads(await own.recv()) == {"id": 7}
    assert process.get("/")[1] == '{"page": "home"}'


# -- (b) beside a project on WSGI --------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_asgi", [True, False], ids=["asgi.py", "no asgi.py"])
async def test_a_process_beside_wsgi_workers_serves_their_sockets(reader: guides.Reader, has_asgi: bool) -> None:
    connect(reader, wired=has_asgi)
    reader.follow(EXISTING, "3. Create the tables and an application")
    assert reader.application is not None
    if not has_asgi:
        (reader.root / "mysite/asgi.py").unlink()
    ours, without_asgi = guides.commands(BESIDE, "uvicorn")
    fanfare = await asyncio.to_thread(reader.serve, ours if has_asgi else without_asgi)
    reader.variables["FANFARE_PUBLIC_URL"] = fanfare.url("").rstrip("/")
    (gunicorn,) = guides.commands(BESIDE, "gunicorn")
    project = await asyncio.to_thread(reader.serve, gunicorn, ready_at="/")
    assert project.get("/health/ready")[0] == 404, "the WSGI workers are Django alone"

    config = page_config(project)
    assert config["options"]["wsPort"] == fanfare.port  # type: ignore[index]
    async with client(fanfare, reader.application) as socket:
        await socket.subscribe("orders")
        await asyncio.to_thread(project.request, "POST", "/order/")
        assert (await socket.expect("created", "orders")).decoded == {"id": 7}
        auth = await authorize(project, config, socket, "private-orders-tea")
        await socket.request_subscription("private-orders-tea", auth=auth)
        await socket.expect("pusher_internal:subscription_succeeded", "private-orders-tea")


async def test_nginx_of_the_guide_gives_both_servers_one_host_name(
    reader: guides.Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")  # where Debian has nginx
    connect(reader)
    reader.follow(EXISTING, "3. Create the tables and an application")
    assert reader.application is not None
    reader.follow(BESIDE, "One host name for both")
    port = servers.free_port()
    reader.variables["FANFARE_PUBLIC_URL"] = f"http://{servers.HOST}:{port}/realtime"
    fanfare = await asyncio.to_thread(
        reader.serve, guides.commands(BESIDE, "uvicorn")[0], ready_at="/realtime/health/ready"
    )
    project = await asyncio.to_thread(reader.serve, guides.commands(BESIDE, "gunicorn")[0], ready_at="/")
    with nginx_of_the_guide(tmp_path, port, {"8000": project.port, "8001": fanfare.port}):
        project.port = port
        waiting.until(lambda: answers(project), guides.START_S, "nginx answers")
        config = page_config(project)
        async with client(project, reader.application, "/realtime") as socket:
            await socket.subscribe("orders")
            await asyncio.to_thread(project.request, "POST", "/order/")
            assert (await socket.expect("created", "orders")).decoded == {"id": 7}
            auth = await authorize(project, config, socket, "private-orders-tea")
            await socket.request_subscription("private-orders-tea", auth=auth)
            await socket.expect("pusher_internal:subscription_succeeded", "private-orders-tea")


@contextmanager
def nginx_of_the_guide(folder: Path, port: int, upstreams: dict[str, int]) -> Iterator[None]:
    """nginx with the blocks of the guide; the ports of its servers are replaced."""
    blocks = [block.text for block in pages.blocks(BESIDE) if block.language == "nginx"]
    for written, real in upstreams.items():
        blocks = [text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{real}") for text in blocks]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, top=blocks[0], locations=blocks[1]))
    process = subprocess.Popen(
        [parts.executable("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(guides.STOP_S)


def answers(process: guides.Process) -> bool:
    with contextlib.suppress(OSError):
        return process.get("/")[0] == 200
    return False


async def test_below_a_url_prefix_nothing_of_the_project_is_hidden(reader: guides.Reader) -> None:
    connect(reader)
    reader.follow(EXISTING, "3. Create the tables and an application")
    assert reader.application is not None
    reader.variables["FANFARE_URL_PREFIX"] = "/realtime/"
    (command, *_) = guides.commands(EXISTING, "uvicorn")
    process = await asyncio.to_thread(reader.serve, command, ready_at="/realtime/health/ready")
    config = page_config(process)
    assert config["options"]["wsPath"] == "/realtime"  # type: ignore[index]
    async with client(process, reader.application, "/realtime") as socket:
        await socket.subscribe("orders")
        await asyncio.to_thread(process.request, "POST", "/order/")
        await socket.expect("created", "orders")
    assert json.loads(process.get("/apps/5/events")[1]) == {"events of": 5}
    assert process.get("/health/ready")[0] == 404
    assert process.get("/realtime/apps/5/events")[0] == 404
    assert "fanfare.W010" not in packages.run(
        [str(reader.site.python), "-c", CHECK], cwd=reader.root, environment=reader.environment
    )


# -- (c) a separate deployment -----------------------------------------------------------------------------------------


async def test_a_project_publishes_to_a_separate_deployment(
    reader: guides.Reader, start: Callable[..., servers.Server]
) -> None:
    deployment = start("uvicorn")
    application = deployment.application
    connect(reader, wired=False)
    reader.follow(SEPARATE, "In the project")
    address = deployment.url("").rstrip("/")
    assert set(reader.variables) == {
        *(f"FANFARE_REMOTE_{name}" for name in ("URL", "APP_ID", "KEY", "SECRET")),
        "FANFARE_PUBLIC_URL",
    }
    reader.variables |= {
        "FANFARE_REMOTE_URL": address,
        "FANFARE_REMOTE_APP_ID": application.id,
        "FANFARE_REMOTE_KEY": application.key,
        "FANFARE_REMOTE_SECRET": application.secret,
        "FANFARE_PUBLIC_URL": address,
    }
    reader.manage("migrate", "--verbosity", "0")
    (gunicorn,) = guides.commands(BESIDE, "gunicorn")
    project = await asyncio.to_thread(reader.serve, gunicorn, ready_at="/")

    config = page_config(project)
    assert (config["key"], config["options"]["wsPort"]) == (application.key, deployment.port)  # type: ignore[index]
    async with sockets.connect(deployment) as socket:
        await socket.subscribe("orders")
        answer = await asyncio.to_thread(project.request, "POST", "/order/")
        assert answer[0] == 200, answer
        assert (await socket.expect("created", "orders")).decoded == {"id": 7}
        auth = await authorize(project, config, socket, "private-orders-tea")
        await socket.request_subscription("private-orders-tea", auth=auth)
        await socket.expect("pusher_internal:subscription_succeeded", "private-orders-tea")
    assert not (reader.root / "var").exists(), "the project opens no log"
