"""The pages of this project. What Fanfare answers before Django stands in apps/fanfare/asgi.py."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from fanfare.server.landing import landing
from myproject import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("docs/", views.docs, name="docs"),
    path("docs/start/", views.quick_start, name="quick_start"),
    path("docs/<path:path>", views.documentation, name="documentation"),
    path("api/docs", views.api_docs, name="api_docs"),
    path("api/docs/", views.api_docs),
    path("api/", RedirectView.as_view(pattern_name="api_docs")),
    path("favicon.ico", views.favicon),
    path("", landing, name="home"),  # a project of your own has its front page here
    path("", include("fanfare.urls")),
]

if apps.is_installed("demo"):
    urlpatterns.append(path("demo/", include("demo.urls")))
