"""URLs of a project with an AdminSite of its own, beside the default one."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

import fanfare.admin

staff = admin.AdminSite("staff")
fanfare.admin.register(staff)

urlpatterns = [path("staff/", staff.urls), path("admin/", admin.site.urls)]
