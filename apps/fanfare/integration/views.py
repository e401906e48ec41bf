"""The endpoints that pusher-js calls before it subscribes to a private or presence channel, and to sign in.

    POST /pusher/auth         form: socket_id, channel_name
    POST /pusher/user-auth    form: socket_id

Both are requests of the page, with Django's session and CSRF token or with anything else that sets `request.user`:

    new Pusher(key, {
        channelAuthorization: { endpoint: "/pusher/auth", headersProvider: () => ({ "X-CSRFToken": csrfToken }) },
        userAuthentication: { endpoint: "/pusher/user-auth", headersProvider: () => ({ "X-CSRFToken": csrfToken }) },
        …
    });

Other parameters of the page (`params`) reach the project's functions in `request.POST`. The response is 200 with
`auth`, and `channel_data` for a presence channel, `shared_secret` for an encrypted one, `user_data` for a user; 400 for
a malformed request; 403 for a refused visitor; 503 without an application, an encryption key or a
reachable database. A refusal is `{"error": …, "code": …}`. Its reason is always logged, and sent with DEBUG only.
Source: Pusher Channels, "Authorizing users", "Authenticating users", "Encrypted channels".

The views respect the project's settings: LoginRequiredMiddleware does not apply to them, ATOMIC_REQUESTS applies to the
project's functions, and a project without CsrfViewMiddleware needs no CSRF token here either.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden, JsonResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.decorators import decorator_from_middleware
from django.utils.module_loading import import_string
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from fanfare import errors
from fanfare.hub import activity
from fanfare.integration import cors, payloads, rule_cache, rules, target, users
from fanfare.protocol import names, refusals, signatures
from fanfare.runtime.text import clean

logger = logging.getLogger("fanfare.integration.auth")

_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
_FORM_HINT = "pusher-js sends socket_id and, for a channel, channel_name as a form."


class _JsonCsrfMiddleware(CsrfViewMiddleware):
    """Django's check with a JSON response, which client libraries show to the developer of the page."""

    def process_view(
        self, request: HttpRequest, callback: Any, callback_args: Any, callback_kwargs: Any
    ) -> HttpResponseForbidden | None:
        if (
            cors.is_trusted(request)
            or cors.carries_token(request)
            or not _project_checks_csrf(tuple(settings.MIDDLEWARE))
        ):
            return None
        return super().process_view(request, callback, callback_args, callback_kwargs)

    def _reject(self, request: HttpRequest, reason: str) -> HttpResponse:
        header = settings.CSRF_HEADER_NAME.removeprefix("HTTP_").replace("_", "-")
        header = "X-CSRFToken" if header == "X-CSRFTOKEN" else header
        hint = f"Give pusher-js headersProvider: () => ({{'{header}': token}}), beside the endpoint."
        if "Origin" in request.headers:
            hint += " A page of another origin needs that origin in FANFARE_CORS_ORIGINS."
        return _refusal(request, 403, "csrf", f"{reason} {hint}")


@functools.cache
def _project_checks_csrf(middleware: tuple[str, ...]) -> bool:
    classes = [import_string(path) for path in middleware]
    return any(isinstance(one, type) and issubclass(one, CsrfViewMiddleware) for one in classes)


class _AllDatabases:
    """For ATOMIC_REQUESTS: the view itself opens the transactions, so that it can answer if the database is
    unavailable.
    """

    def __contains__(self, alias: object) -> bool:
        return True


def _endpoint(sign: Callable[[HttpRequest, int | None], dict[str, str]]) -> cors.View:
    """A view from a function that returns the body of a 200 response or raises FanfareError.

    `sign` gets the request and the generation of the rule cache.
    """

    # The site's CSRF middleware is skipped because the inner decorator makes the same check.
    @csrf_exempt
    @login_not_required
    @cors.answering
    @require_POST
    @never_cache
    @decorator_from_middleware(_JsonCsrfMiddleware)
    @functools.wraps(sign)
    def view(request: HttpRequest) -> HttpResponse:
        generation = rule_cache.cache.generation  # before a transaction that may show the rights of its beginning
        try:
            with _atomic_requests():
                return JsonResponse(sign(request, generation))
        except errors.AccessRefused as error:
            return _refusal(request, error.status, error.code, str(error))
        except (errors.NoApplication, errors.NoMasterKey) as error:
            return _refusal(request, 503, error.code, str(error))
        except OperationalError as error:
            # The database is unavailable, or its pool is exhausted. A traceback per visitor would fill the log.
            logger.error("Not authorized, because the database is unavailable: %s", error)  # noqa: TRY400
            return _refusal(request, 503, "database_unavailable", str(error))
        except errors.RuleError as error:
            # The project's function has returned: a traceback would show only Fanfare's code.
            logger.error("Not authorized, because the project's rule is wrong: %s", error)  # noqa: TRY400
            return _refusal(request, 403, error.code, str(error))

    view._non_atomic_requests = _AllDatabases()  # type: ignore[attr-defined]
    return view


@contextlib.contextmanager
def _atomic_requests() -> Any:
    with contextlib.ExitStack() as stack:
        for alias, values in connections.settings.items():
            if values["ATOMIC_REQUESTS"]:
                stack.enter_context(transaction.atomic(using=alias))
        yield


@_endpoint
def auth(request: HttpRequest, generation: int | None) -> dict[str, str]:
    """Call the channel's rule and sign its result."""
    socket_id = _socket_id(request)
    channel = request.POST.get("channel_name", "")
    if not channel:
        raise errors.MalformedRequest("channel_name", f"The form has no channel_name. {_FORM_HINT}")
    application = target.fetch_default()  # not cached: a secret that was just rotated must not sign
    try:
        names.check_channel(channel, application.limits.max_channel_name)
    except refusals.InvalidName as error:
        raise errors.MalformedRequest("channel_name", str(error)) from error
    channel_data, token = rules.authorize(request, channel, application.limits, generation=generation)
    signed = token or signatures.subscription_auth(
        application.key, application.secret, socket_id, channel, channel_data
    )
    answer = {"auth": signed}
    if channel_data is not None:
        answer["channel_data"] = channel_data
    if names.is_encrypted(channel):
        answer["shared_secret"] = payloads.shared_secret(channel)
    return answer


@_endpoint
def user_auth(request: HttpRequest, _generation: int | None) -> dict[str, str]:
    """Sign the user as which the visitor signs in."""
    socket_id = _socket_id(request)
    application = target.fetch_default()
    user_data = users.authenticate(request, application.limits)
    return {
        "auth": signatures.user_auth(application.key, application.secret, socket_id, user_data),
        "user_data": user_data,
    }


def _socket_id(request: HttpRequest) -> str:
    """Raises MalformedRequest if there is no form, or no valid socket_id in it."""
    if request.content_type not in _FORM_TYPES:
        found = request.content_type or "none"
        raise errors.MalformedRequest("content_type", f"The content type is {found}, not that of a form. {_FORM_HINT}")
    socket_id = request.POST.get("socket_id", "")
    if not socket_id:
        raise errors.MalformedRequest("socket_id", f"The form has no socket_id. {_FORM_HINT}")
    if not names.is_valid_socket_id(socket_id):
        raise errors.MalformedRequest("socket_id", f"socket_id is {socket_id[:40]!r}; one looks like 1234.5678.")
    return socket_id


def _refusal(request: HttpRequest, status: int, code: str, reason: str) -> JsonResponse:
    logger.info("Not authorized (%d, %s): %s", status, code, reason)
    activity.report(
        "authorization",
        code,
        reason,
        channel=clean(request.POST.get("channel_name", ""), 200),
        address=request.META.get("REMOTE_ADDR", ""),
        evidence={"socket_id": clean(request.POST.get("socket_id", ""), 64)},
    )
    if not settings.DEBUG:  # otherwise any visitor could list the rules and the channels
        code, reason = "refused", HTTPStatus(status).phrase
    return JsonResponse({"error": reason, "code": code}, status=status)
