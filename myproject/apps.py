from __future__ import annotations

from django.apps import AppConfig


class ProjectConfig(AppConfig):
    """The example project: its templates, its static files and the commands `setup` and `develop`."""

    name = "myproject"
    label = "myproject"
    verbose_name = "Project"

    def ready(self) -> None:
        from myproject import checks  # noqa: F401  (registers them)
