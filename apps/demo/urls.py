from __future__ import annotations

from django.urls import path

from demo import views

app_name = "demo"

urlpatterns = [
    path("", views.room, name="room"),
    path("messages/", views.messages, name="messages"),
    path("kill/", views.kill, name="kill"),
]
