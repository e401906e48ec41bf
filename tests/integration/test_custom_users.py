"""A project whose users have an e-mail address in place of a username, and a UUID as their primary key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = {
    "shop/__init__.py": "",
    "shop/settings.py": """
from pathlib import Path

BASE_DIR = Path(__file__).parent.parent
SECRET_KEY = "for this test"
AUTH_USER_MODEL = "shop.Account"
INSTALLED_APPS = [
    "shop", "fanfare", "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
    "django.contrib.messages", "django.contrib.sessions",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "shop.sqlite3",
        "TEST": {"NAME": BASE_DIR / "test.sqlite3"},
    }
}
STATIC_URL = "static/"
ROOT_URLCONF = "shop.urls"
""",
    "shop/models.py": """
import uuid

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models

from fanfare import broadcast


class Accounts(BaseUserManager):
    def create_user(self, email, password=None, **more):
        account = self.model(email=email, **more)
        account.set_password(password)
        account.save(using=self._db)
        return account

    def create_superuser(self, email, password=None, **more):
        return self.create_user(email, password, is_staff=True, is_superuser=True, **more)


class Account(AbstractBaseUser, PermissionsMixin):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(unique=True)
    is_staff = models.BooleanField(default=False)
    objects = Accounts()
    USERNAME_FIELD = "email"


@broadcast(channels=lambda order: [f"private-orders-{order.owner_id}"], fields=["pk", "owner"])
class Order(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    owner = models.ForeignKey(Account, models.CASCADE)
""",
    "shop/channels.py": """
from fanfare import channel


@channel("private-orders-{owner:uuid}")
def may_see_orders(user, owner):
    return user.pk == owner


@channel("presence-lobby")
def may_join(user):
    return user.is_authenticated
""",
    "shop/urls.py": """
from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("", include("fanfare.urls"))]
""",
    "shop/tests.py": """
import json
import tempfile
from pathlib import Path

from django.contrib.auth import get_user_model
from django.test import TestCase, TransactionTestCase
from websockets.sync.client import connect

from fanfare import InvalidUser, UserData, presence, publish
from fanfare.testing import captured_events, running_server
from shop.models import Order


class Tests(TestCase):
    def setUp(self):
        self.ann = get_user_model().objects.create_superuser("ann@example.com", "secret")
        self.client.force_login(self.ann)

    def test_ids(self):
        with captured_events() as events:
            for user in (self.ann, self.ann.pk, str(self.ann.pk), self.ann.pk.hex, UserData(self.ann)):
                publish(None, "paid", 1, to_user=user)
            with self.assertRaisesMessage(InvalidUser, "is not a primary key of shop.Account"):
                publish(None, "paid", 1, to_user="ann@example.com")
            with self.assertRaises(InvalidUser):
                presence.is_online("admin")
            presence.disconnect_user(self.ann)
        self.assertEqual([event.to_user for event in events], [str(self.ann.pk)] * 5)
        self.assertEqual(events.disconnected, [str(self.ann.pk)])

    def test_keys_of_a_broadcast(self):
        with captured_events() as events:
            order = Order.objects.create(owner=self.ann)
        [event] = events.on(f"private-orders-{self.ann.pk}")
        self.assertEqual(event.data, {"pk": str(order.pk), "owner": str(self.ann.pk)})

    def test_admin_pages(self):
        for page in ("", "application/", "application/add/", "outboxevent/", "delivery/"):
            page = f"fanfare/{page}"
            self.assertEqual(self.client.get(f"/admin/{page}").status_code, 200, page)


class Sockets(TransactionTestCase):
    def test_sign_in_and_presence(self):
        ann = get_user_model().objects.create_user("ann@example.com", "secret")
        self.client.force_login(ann)
        with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as server:
            with connect(server.socket_url) as socket:
                socket_id = json.loads(json.loads(socket.recv(10))["data"])["socket_id"]

                def ask(path, **form):
                    response = self.client.post(path, {"socket_id": socket_id, **form})
                    self.assertEqual(response.status_code, 200, response.content)
                    return response.json()

                socket.send(json.dumps({"event": "pusher:signin", "data": ask("/pusher/user-auth")}))
                self.assertIn("signin_success", socket.recv(10))
                joined = {"channel": "presence-lobby", **ask("/pusher/auth", channel_name="presence-lobby")}
                socket.send(json.dumps({"event": "pusher:subscribe", "data": joined}))
                self.assertIn("subscription_succeeded", socket.recv(10))
                self.assertTrue(presence.is_online(ann))
                [member] = presence.members("presence-lobby")
                self.assertEqual((member.id, member.info), (str(ann.pk), {"name": "ann@example.com"}))
                channel = f"private-orders-{ann.pk}"
                private = {"channel": channel, **ask("/pusher/auth", channel_name=channel)}
                socket.send(json.dumps({"event": "pusher:subscribe", "data": private}))
                self.assertIn("subscription_succeeded", socket.recv(10))
                order = Order.objects.create(owner=ann)
                self.assertIn(str(order.pk), socket.recv(10))
""",
}


def test_project_with_uuid_keys_and_without_usernames(tmp_path: Path) -> None:
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FANFARE_")}
    environment = {**inherited, "DJANGO_SETTINGS_MODULE": "shop.settings", "PYTHONPATH": str(tmp_path)}
    for command in (["makemigrations", "shop"], ["check"], ["test", "--parallel", "1"]):
        done = subprocess.run(
            [sys.executable, "-m", "django", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
