"""What a user may do in the console: Django's own permissions, for all applications or for one.

`fanfare.disconnect_client` is about all applications, `fanfare.disconnect_client_1001` about the application 1001. Both
are rows of Django's Permission, given to users and groups in the admin. A superuser has all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from django.apps import apps
from django.db import connections, router, transaction

VIEW: Final = "view_console"
# By permission, its name in the admin. The last one is about the deployment, so there is none per application.
PER_APPLICATION: Final = {
    VIEW: "Can view the console",
    "publish_event": "Can publish events in the console",
    "disconnect_client": "Can disconnect clients in the console",
    "manage_webhooks": "Can pause webhook endpoints and redeliver in the console",
}
ALL: Final = {**PER_APPLICATION, "drain_worker": "Can drain workers in the console"}

Rights = Mapping[str, frozenset[str] | None]  # by permission: the ids of applications; None for all of them


@dataclass(frozen=True, slots=True)
class Access:
    """A user of the console. `expires`: Unix time."""

    user_id: str
    user: str
    rights: Rights = field(default_factory=dict)
    expires: float = 0.0

    def may(self, permission: str, app_id: str | None = None) -> bool:
        """Whether the permission covers an application; without `app_id`, any of them."""
        if permission not in self.rights:
            return False
        app_ids = self.rights[permission]
        return app_ids is None or (bool(app_ids) if app_id is None else app_id in app_ids)

    def applications(self, permission: str = VIEW) -> frozenset[str] | None:
        """The ids of the applications that the permission covers; None for all, also of those to come."""
        return self.rights.get(permission, frozenset())


def of(user: Any) -> Access:
    """The access of a user of Django's auth."""
    rights: dict[str, frozenset[str] | None] = {}
    if user.is_active:
        for label in user.get_all_permissions():
            app_label, _, codename = label.partition(".")
            if app_label == "fanfare":
                _add(rights, codename)
    return Access(str(user.pk), user.get_username(), rights)


def _add(rights: dict[str, frozenset[str] | None], codename: str) -> None:
    if codename in ALL:
        rights[codename] = None
        return
    permission, _, app_id = codename.rpartition("_")
    if (
        permission in PER_APPLICATION
        and app_id.isdigit()
        and (known := rights.get(permission, frozenset())) is not None
    ):
        rights[permission] = known | {app_id}


# -- the rows of Django's Permission -----------------------------------------------------------------------------------


def create_for(app_ids: Mapping[str, str], using: str | None = None) -> None:
    """Create the missing permissions of applications, which are given by id with their names. `using`: the database;
    None: that of Django's auth."""
    if not app_ids or not apps.is_installed("django.contrib.auth"):
        return
    from django.contrib.auth.models import Permission
    from django.contrib.contenttypes.models import ContentType

    using = using or router.db_for_write(Permission)
    of_console = ContentType.objects.db_manager(using).get_for_model(apps.get_model("fanfare", "Console"))
    rows = [
        Permission(content_type=of_console, codename=f"{permission}_{app_id}", name=f"{text} of {name}"[:255])
        for app_id, name in app_ids.items()
        for permission, text in PER_APPLICATION.items()
    ]
    Permission.objects.using(using).bulk_create(rows, ignore_conflicts=True)


def application_saved(instance: Any, created: bool, raw: bool, using: str, **_: Any) -> None:
    """Signal handler: a new application gets its permissions. With `loaddata`, after the commit: the fixture may
    contain the same permissions with ids of their own."""
    if created:
        create = functools.partial(create_for, {instance.app_id: instance.name})
        if raw:
            transaction.on_commit(create, using=using, robust=True)
        else:
            create()


def application_deleted(instance: Any, **_: Any) -> None:
    """Signal handler: another application may get the same id later, and must not inherit its users."""
    if apps.is_installed("django.contrib.auth"):
        from django.contrib.auth.models import Permission

        codenames = [f"{permission}_{instance.app_id}" for permission in PER_APPLICATION]
        Permission.objects.filter(content_type__app_label="fanfare", codename__in=codenames).delete()


def migrated(using: str, **_: Any) -> None:
    """Signal handler after `migrate`: the applications that exist get their permissions."""
    application = apps.get_model("fanfare", "Application")
    tables = connections[using].introspection.table_names()
    if application._meta.db_table in tables and "auth_permission" in tables:
        create_for(dict(application._default_manager.using(using).values_list("app_id", "name")), using)
