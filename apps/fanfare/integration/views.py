"""The endpoints that pusher-js asks: before it joins a private or a presence channel, and when it signs in.

`POST /pusher/auth`, form-encoded `socket_id` and `channel_name`; `POST /pusher/user-auth`, form-encoded `socket_id`.
Both with Django's session and CSRF token, or with whatever else sets `request.user`:

    new Pusher(key, {
        channelAuthorization: { endpoint: "/pusher/auth", headersProvider: () => ({ "X-CSRFToken": csrfToken }) },
        userAuthentication: { endpoint: "/pusher/user-auth", headersProvider: () => ({ "X-CSRFToken": csrfToken }) },
        …
    });

Whatever else the page sends (`params`) reaches the project's functions in `request.POST`. The answer is 200 with
`auth`, and with `channel_data` for a presence channel, `shared_secret` for an encrypted one, or `user_data` for a user;
400 if the request is malformed, 403 if the visitor is refused, 503 if there is no application to sign for, no key to
encrypt with, or no database to ask. A refusal is `{"error": …, "code": …}`. Why, it says only with DEBUG; the log says
it always. Source: Pusher Channels, "Authorizing users", "Authenticating users", "Encrypted channels".
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden, JsonResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.decorators import decorator_from_middleware
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from fanfare import errors
from fanfare.integration import cors, payloads, rules, target, users
from fanfare.protocol import names, refusals, signatures

logger = logging.getLogger("fanfare.integration.auth")

_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
_FORM_HINT = "pusher-js sends socket_id and, for a channel, channel_name as a form."
_CSRF_HINT = "Give pusher-js headersProvider: () => ({'X-CSRFToken': token}), beside the endpoint."


class _JsonCsrfMiddleware(CsrfViewMiddleware):
    """Django's own check, with an answer for a script: an HTML page tells the developer of a client nothing."""

    def process_view(
        self, request: HttpRequest, callback: Any, callback_args: Any, callback_kwargs: Any
    ) -> HttpResponseForbidden | None:
        if cors.is_trusted(request) or cors.carries_token(request):
            return None
        return super().process_view(request, callback, callback_args, callback_kwargs)

    def _reject(self, request: HttpRequest, reason: str) -> HttpResponse:
        return _refusal(403, "csrf", f"{reason} {_CSRF_HINT}")


def _endpoint(sign: Callable[[HttpRequest], dict[str, str]]) -> cors.View:
    """A view of a function that answers with the body of a 200, or raises a FanfareError."""

    # Exempt from the site's middleware only because the inner decorator does the same check.
    @csrf_exempt
    @cors.answering
    @require_POST
    @never_cache
    @decorator_from_middleware(_JsonCsrfMiddleware)
    @functools.wraps(sign)
    def view(request: HttpRequest) -> HttpResponse:
        try:
            return JsonResponse(sign(request))
        except errors.AccessRefused as error:
            return _refusal(error.status, error.code, str(error))
        except (errors.NoApplication, errors.NoMasterKey) as error:
            return _refusal(503, error.code, str(error))
        except OperationalError as error:
            # Away, or its pool is used up: a page may try again, and a trace for each visitor would fill the log.
            logger.error("The database could not be asked who may join: %s", error)  # noqa: TRY400
            return _refusal(503, "database_unavailable", str(error))
        except errors.RuleError as error:
            # The project's function has returned: a trace would show us.
            logger.error("The project says wrongly who may join: %s", error)  # noqa: TRY400
            return _refusal(403, error.code, str(error))

    return view


@_endpoint
def auth(request: HttpRequest) -> dict[str, str]:
    """Ask the channel's rule and sign its answer."""
    socket_id = _socket_id(request)
    channel = request.POST.get("channel_name", "")
    if not channel:
        raise errors.MalformedRequest("channel_name", f"The form has no channel_name. {_FORM_HINT}")
    application = target.fetch_default()  # read anew: a secret that was rotated a second ago must not sign
    try:
        names.check_channel(channel, application.limits.max_channel_name)
    except refusals.InvalidName as error:
        raise errors.MalformedRequest("channel_name", str(error)) from error
    channel_data = rules.authorize(request, channel, application.limits)
    answer = {
        "auth": signatures.subscription_auth(application.key, application.secret, socket_id, channel, channel_data)
    }
    if channel_data is not None:
        answer["channel_data"] = channel_data
    if names.is_encrypted(channel):
        answer["shared_secret"] = payloads.shared_secret(channel)
    return answer


@_endpoint
def user_auth(request: HttpRequest) -> dict[str, str]:
    """Say who the visitor is, and sign it."""
    socket_id = _socket_id(request)
    application = target.fetch_default()
    user_data = users.authenticate(request, application.limits)
    return {
        "auth": signatures.user_auth(application.key, application.secret, socket_id, user_data),
        "user_data": user_data,
    }


def _socket_id(request: HttpRequest) -> str:
    """Raises MalformedRequest, where there is no form or no such thing in it."""
    if request.content_type not in _FORM_TYPES:
        raise errors.MalformedRequest("content_type", f"Send a form; this is {request.content_type or 'of no type'}.")
    socket_id = request.POST.get("socket_id", "")
    if not socket_id:
        raise errors.MalformedRequest("socket_id", f"The form has no socket_id. {_FORM_HINT}")
    if not names.is_valid_socket_id(socket_id):
        raise errors.MalformedRequest("socket_id", f"socket_id is {socket_id[:40]!r}; one looks like 1234.5678.")
    return socket_id


def _refusal(status: int, code: str, reason: str) -> JsonResponse:
    logger.info("Not authorized (%d, %s): %s", status, code, reason)
    if not settings.DEBUG:  # strangers learn neither the rules nor which channels there are
        code, reason = "refused", HTTPStatus(status).phrase
    return JsonResponse({"error": reason, "code": code}, status=status)
