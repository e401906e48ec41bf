"""An ordinary app of a reader of the tutorial passes `make lint`, with the migration that Django wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from django.db import migrations, models
from django.db.migrations.writer import MigrationWriter

ROOT = Path(__file__).parents[3]

MODELS = """\
from django.db import models


class Order(models.Model):
    customer = models.CharField(max_length=100)
    total = models.DecimalField(max_digits=8, decimal_places=2)

    class Meta:
        ordering = ["-id"]

    def __str__(self):
        return f"Order {self.id}"
"""

ADMIN = """\
from django.contrib import admin

from .models import Order


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ["customer", "total"]
"""

VIEWS = """\
from django.http import JsonResponse
from django.shortcuts import get_object_or_404, render

from fanfare import publish

from .models import Order


def index(request):
    return render(request, "shop/index.html", {"orders": Order.objects.all()})


def change(request, pk):
    order = get_object_or_404(Order, pk=pk)
    order.save()
    publish(f"order-{order.pk}", "changed", {"total": str(order.total)})
    return JsonResponse({"ok": True})
"""


def test_ordinary_app_and_its_migration_have_no_findings(tmp_path: Path) -> None:
    migration = migrations.Migration("0001_initial", "shop")
    fields = [("id", models.BigAutoField(primary_key=True)), ("customer", models.CharField(max_length=100))]
    migration.operations = [migrations.CreateModel("Order", fields, options={"ordering": ["-id"]})]
    app = tmp_path / "shop"
    written = {
        "__init__.py": "",
        "models.py": MODELS,
        "admin.py": ADMIN,
        "views.py": VIEWS,
        "migrations/__init__.py": "",
        # Django formats it where it finds black on the PATH.
        "migrations/0001_initial.py": MigrationWriter(migration).as_string().replace('"', "'"),
    }
    for name, text in written.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for command in (["check"], ["format", "--check"]):
        found = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stdout + found.stderr
