from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from chat import views

urlpatterns = [
    path("", views.page, name="page"),
    path("plain/", views.plain_page),
    path("ask/", views.ask, name="ask"),
    path("stop/<int:turn>/", views.stop),
    path("admin/", admin.site.urls),
    path("", include("fanfare.urls")),
]
