"""Permissions and tokens of the console."""

from __future__ import annotations

import time

import pytest
from django.contrib.auth.models import Permission, User
from django.core import signing

from fanfare.applications.models import Application
from fanfare.console import permissions, tokens

pytestmark = pytest.mark.django_db


def give(user: User, *codenames: str) -> User:
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return User.objects.get(pk=user.pk)  # Django caches the permissions on the object


def test_superuser_may_do_everything_in_all_applications() -> None:
    access = permissions.of(User.objects.create_superuser("root"))
    assert all(access.may(name, "1001") for name in permissions.ALL)
    assert access.applications() is None


def test_global_permission_covers_all_applications() -> None:
    user = give(User.objects.create_user("ann"), "view_console", "disconnect_client")
    access = permissions.of(user)
    assert access.may("view_console", "1")
    assert access.may("disconnect_client", "77")
    assert not access.may("publish_event")


def test_permission_of_an_application_covers_only_that_one() -> None:
    shop = Application.objects.create(name="Shop")
    blog = Application.objects.create(name="Blog")
    user = give(User.objects.create_user("ann"), f"view_console_{shop.app_id}", f"publish_event_{shop.app_id}")
    access = permissions.of(user)
    assert access.may("view_console")
    assert access.may("publish_event", shop.app_id)
    assert not access.may("view_console", blog.app_id)
    assert access.applications() == {shop.app_id}
    assert access.applications("disconnect_client") == frozenset()


def test_inactive_user_has_no_access() -> None:
    user = give(User.objects.create_user("ann", is_active=False), "view_console")
    assert not permissions.of(user).rights


def test_permissions_are_created_and_deleted_with_their_application() -> None:
    shop = Application.objects.create(name="Shop")
    rows = Permission.objects.filter(codename__endswith=f"_{shop.app_id}")
    assert {row.codename for row in rows} == {f"{name}_{shop.app_id}" for name in permissions.PER_APPLICATION}
    assert rows.get(codename__startswith="view").name == "Can view the console of Shop"
    shop.delete()
    assert not rows.all()


def test_token_carries_the_access() -> None:
    rights = {"view_console": None, "publish_event": frozenset({"1", "2"})}
    read = tokens.read(tokens.issue(permissions.Access("7", "ann", rights)))
    assert read is not None
    assert (read.user_id, read.user, read.rights) == ("7", "ann", rights)
    assert 0 < read.expires - time.time() <= tokens.SECONDS


@pytest.mark.parametrize("token", ["", "a", "a:b:c", "x" * 20_000])
def test_forged_token_is_refused(token: str) -> None:
    assert tokens.read(token) is None


def test_token_signed_for_another_purpose_is_refused() -> None:
    assert tokens.read(signing.dumps({"id": "1"}, salt="other")) is None


def test_expired_token_is_refused() -> None:
    token = tokens.issue(permissions.Access("7", "ann"), now=time.time() - tokens.SECONDS - 1)
    assert tokens.read(token) is None
