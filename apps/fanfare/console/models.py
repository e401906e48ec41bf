"""The audit log of the console, and the model that carries the console's permissions."""

from __future__ import annotations

from django.db import models

from fanfare.console import permissions


class NoRows(models.Manager["Console"]):
    """Makes no query: `dumpdata` reads every model, and this one has no table."""

    def get_queryset(self) -> models.QuerySet[Console]:
        return super().get_queryset().none()


class Console(models.Model):
    """No table: the admin's entry of the console, and the permissions of `fanfare.console.permissions`."""

    objects = NoRows()

    class Meta:
        managed = False
        default_permissions = ("view",)
        permissions = tuple(one for one in permissions.ALL.items() if one[0] != permissions.VIEW)
        verbose_name = "console"
        verbose_name_plural = "console"

    def __str__(self) -> str:
        return "console"


Console._meta.base_manager_name = "objects"  # for `dumpdata --all`; as an option of `Meta` it would need a migration


class AuditEntry(models.Model):
    """One action in the console. The user's name stays when the account is deleted."""

    at = models.DateTimeField("time", auto_now_add=True, db_index=True)
    user_id = models.CharField(max_length=64)
    user = models.CharField(max_length=150)
    action = models.CharField(max_length=40, db_index=True)
    app_id = models.CharField("application", max_length=15, blank=True)
    target = models.CharField(max_length=250, blank=True)
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ("-id",)
        default_permissions = ("view",)
        verbose_name = "console action"
        verbose_name_plural = "console actions"

    def __str__(self) -> str:
        return f"{self.user}: {self.action} {self.target}".rstrip()
