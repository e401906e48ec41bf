from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User

from fanfare import UserData, channel, user_data


@channel("private-orders-{order:int}")
@channel("private-encrypted-patient-{patient:int}")
def may_see(user: Any, **_: int) -> bool:
    return bool(user.is_authenticated)


@user_data
def friends(user: Any) -> UserData | bool:
    return user.is_authenticated and UserData(user, {"name": str(user)}, watchlist=User.objects.exclude(pk=user.pk))
