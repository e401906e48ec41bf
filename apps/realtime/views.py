"""The endpoint that pusher-js asks before it joins a private or a presence channel.

`POST /pusher/auth`, form-encoded `socket_id` and `channel_name`, with Django's session and CSRF token:

    new Pusher(key, {
        channelAuthorization: { endpoint: "/pusher/auth", headersProvider: () => ({ "X-CSRFToken": csrfToken }) },
        …
    });

Whatever else the page sends (`params`) reaches the rule in `request.POST`. The answer is 200 with `auth`, and with
`channel_data` for a presence channel; 400 if the request is malformed, 403 if the rule refuses, 503 if there is no
application to sign for. A refusal is `{"error": …, "code": …}`. Why, it says only with DEBUG; the log says it always.
Source: Pusher Channels, "Authorizing users".
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.decorators import decorator_from_middleware
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from apps.pusher import errors as pusher_errors
from apps.pusher import names, signatures
from apps.realtime import application, authorization, errors

logger = logging.getLogger("apps.realtime.auth")

_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
_CSRF_HINT = "Give pusher-js channelAuthorization.headersProvider: () => ({'X-CSRFToken': token})."


class _JsonCsrfMiddleware(CsrfViewMiddleware):
    """Django's own check, with an answer for a script: an HTML page tells the developer of a client nothing."""

    def _reject(self, request: HttpRequest, reason: str) -> HttpResponse:
        return _refusal(403, "csrf", f"{reason} {_CSRF_HINT}")


# Exempt from the site's middleware only because the inner decorator does the same check.
@csrf_exempt
@require_POST
@never_cache
@decorator_from_middleware(_JsonCsrfMiddleware)
def auth(request: HttpRequest) -> HttpResponse:
    """Ask the channel's rule and sign its answer."""
    try:
        return JsonResponse(_authorized(request))
    except errors.AccessRefused as error:
        return _refusal(error.status, error.code, str(error))
    except errors.NoApplication as error:
        return _refusal(503, error.code, str(error))
    except errors.RuleError as error:
        logger.error("A channel rule is wrong: %s", error)  # noqa: TRY400  the rule has returned; a trace would show us
        return _refusal(403, error.code, str(error))


def _authorized(request: HttpRequest) -> dict[str, str]:
    """The body of a 200. Raises AccessRefused, NoApplication, RuleError."""
    if request.content_type not in _FORM_TYPES:
        raise errors.MalformedRequest("content_type", f"Send a form; this is {request.content_type or 'of no type'}.")
    socket_id = request.POST.get("socket_id", "")
    channel = request.POST.get("channel_name", "")
    if not names.is_valid_socket_id(socket_id):
        raise errors.MalformedRequest("socket_id", "socket_id is missing or malformed; one looks like 1234.5678.")
    target = application.fetch_default()  # read anew: a secret that was rotated a second ago must not sign
    try:
        names.check_channel(channel, target.limits.max_channel_name)
    except pusher_errors.InvalidName as error:
        raise errors.MalformedRequest("channel_name", str(error)) from error
    channel_data = authorization.authorize(request, channel, target.limits)
    auth = signatures.subscription_auth(target.key, target.secret, socket_id, channel, channel_data)
    return {"auth": auth} if channel_data is None else {"auth": auth, "channel_data": channel_data}


def _refusal(status: int, code: str, reason: str) -> JsonResponse:
    logger.info("Not authorized (%d, %s): %s", status, code, reason)
    if not settings.DEBUG:  # strangers learn neither the rules nor which channels there are
        code, reason = "refused", HTTPStatus(status).phrase
    return JsonResponse({"error": reason, "code": code}, status=status)
