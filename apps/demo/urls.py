from __future__ import annotations

from django.urls import path

from apps.demo import views

app_name = "demo"

urlpatterns = [
    path("", views.room, name="room"),
    path("messages/", views.say, name="say"),
]
