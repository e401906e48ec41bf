"""URLs of a project with an AdminSite of its own, beside the default one."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from fanfare.applications.admin import ApplicationAdmin
from fanfare.applications.models import Application

staff = admin.AdminSite("staff")
staff.register(Application, ApplicationAdmin)

urlpatterns = [path("staff/", staff.urls), path("admin/", admin.site.urls)]
