"""The admin pages of Fanfare. Importing the modules registers them with Django's default admin site."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin

from fanfare.applications import admin as applications
from fanfare.console import admin as console
from fanfare.integration import admin as outbox
from fanfare.webhooks import admin as webhooks

__all__ = ["applications", "console", "outbox", "register", "webhooks"]


def register(site: admin.AdminSite) -> None:
    """Register the admin pages and the console with another `AdminSite`. Its own registrations stay."""
    for model in apps.get_app_config("fanfare").get_models():
        if admin.site.is_registered(model) and not site.is_registered(model):
            site.register(model, type(admin.site.get_model_admin(model)))
