"""The console's pages in the admin."""

from __future__ import annotations

import re

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import resolve, reverse

from fanfare.console import pages, tokens

pytestmark = pytest.mark.django_db


@pytest.fixture
def root(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def staff(client: Client) -> User:
    user = User.objects.create_user("ann", is_staff=True)
    client.force_login(user)
    return user


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_view_of_a_page_has_a_name_that_can_be_imported(page: pages.Page) -> None:
    """`django.contrib.admindocs` imports the views that it lists."""
    view = resolve(reverse(f"admin:{page.url_name}")).func
    assert f"{view.__module__}.{view.__qualname__}" == "fanfare.console.admin.ConsoleAdmin.show"


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_page_has_a_token_and_no_inline_script_or_style(root: Client, page: pages.Page) -> None:
    response = root.get(reverse(f"admin:{page.url_name}"))
    html = response.content.decode()
    assert response.status_code == 200
    token = re.search(r'data-token="([^"]+)"', html)
    assert token is not None
    access = tokens.read(token[1])
    assert access is not None
    assert access.user == "root"
    assert f"fanfare/console/{page.name}.js" in html
    assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son\w+=", html)


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_page_needs_a_permission(client: Client, staff: User, page: pages.Page) -> None:
    assert client.get(reverse(f"admin:{page.url_name}")).status_code == 403
    staff.user_permissions.add(Permission.objects.get(codename=page.permission))
    assert client.get(reverse(f"admin:{page.url_name}")).status_code == 200


def test_page_redirects_to_the_login(client: Client) -> None:
    response = client.get(reverse("admin:fanfare_console_changelist"))
    assert response.status_code == 302
    assert "/login/" in response["Location"]


def test_index_of_the_admin_links_to_the_console(root: Client) -> None:
    assert reverse("admin:fanfare_console_changelist") in root.get(reverse("admin:index")).content.decode()


def test_index_of_a_user_without_permission_has_no_console(client: Client, staff: User) -> None:
    assert "fanfare/console" not in client.get(reverse("admin:index")).content.decode()


def test_token_is_renewed_with_the_permissions_of_now(client: Client, staff: User) -> None:
    url = reverse("admin:fanfare_console_token")
    assert client.post(url).status_code == 403
    staff.user_permissions.add(Permission.objects.get(codename="view_console"))
    access = tokens.read(client.post(url).json()["token"])
    assert access is not None
    assert access.rights == {"view_console": None}
    assert client.get(url).status_code == 405


def test_console_belongs_to_the_default_admin_site() -> None:
    assert {model.__name__ for model in admin.site._registry} >= {"Console", "AuditEntry"}


def test_page_asks_the_workers_at_the_public_url(root: Client, settings: object) -> None:
    settings.FANFARE = {"PUBLIC_URL": "https://realtime.example.com", "URL_PREFIX": "/rt/"}  # type: ignore[attr-defined]
    html = root.get(reverse("admin:fanfare_console_changelist")).content.decode()
    assert 'data-live="https://realtime.example.com/fanfare/console/"' in html
