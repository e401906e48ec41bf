"""`{% fanfare_client %}`: a connected pusher-js on the page.

    {% load fanfare %}
    {% fanfare_client nonce=request.csp_nonce %}
    <script src="{% static 'shop/orders.js' %}" nonce="{{ request.csp_nonce }}"></script>

Scripts after it find the client in `window.fanfare`. It connects to the host of the page, or to FANFARE_PUBLIC_URL, is
authorized with the page's session and CSRF token, and recovers missed events after a reconnect. No script is inline, so
a content security policy needs no more than `script-src 'self'` (or the nonce) and a `connect-src` with the host of the
sockets.
"""

from __future__ import annotations

import logging
from typing import Any

from django import template
from django.conf import settings
from django.http import HttpRequest
from django.middleware.csrf import get_token
from django.urls import NoReverseMatch, reverse

from fanfare import errors
from fanfare.integration import clients, snapshots

logger = logging.getLogger("fanfare.integration")

register = template.Library()


@register.inclusion_tag("fanfare/client.html", takes_context=True)
def fanfare_client(
    context: template.Context,
    *,
    nonce: str = "",
    resume: bool = True,
    sign_in: bool = False,
    encrypted: bool = False,
    params: dict[str, Any] | None = None,
    since: snapshots.Positions | None = None,
) -> dict[str, Any]:
    """A client of the project's default application.

    `nonce`: that of the page's content security policy. `resume`: whether it recovers missed events after a reconnect.
    `sign_in`: whether it signs in as the visitor. `encrypted`: whether it can read encrypted channels, with a script
    that is half as large again. `params`: a dict that the project's rules find in `request.POST`. `since`: the
    positions of a `fanfare.snapshot`; subscriptions to these channels start there.

    Without an application the page has no client and is otherwise complete; the reason is logged as an error.
    """
    request: HttpRequest | None = context.get("request")
    if request is None:
        raise template.TemplateSyntaxError(
            "{% fanfare_client %} needs the request: render the page with render(request, …), and keep "
            "django.template.context_processors.request among the context processors of TEMPLATES."
        )
    try:
        connection = clients.pusher_options(request)
    except errors.NoApplication as error:
        logger.error("The page %s has no client: %s", request.path, error)  # noqa: TRY400  (a trace says no more)
        return {"config": None}
    config = {
        **connection,
        "samePlace": not clients.is_elsewhere(),
        "authEndpoint": _url("auth"),
        "userAuthEndpoint": _url("user_auth"),
        "csrfToken": get_token(request),
        "csrfCookie": "" if settings.CSRF_USE_SESSIONS or settings.CSRF_COOKIE_HTTPONLY else settings.CSRF_COOKIE_NAME,
        "csrfHeader": settings.CSRF_HEADER_NAME.removeprefix("HTTP_").replace("_", "-"),
        "params": params or {},
        "recover": resume,
        "signIn": sign_in,
        "since": since or {},
    }
    if since and not resume:
        raise template.TemplateSyntaxError(
            "{% fanfare_client %}: since= needs the resume plugin, which resume=False leaves out."
        )
    library = "pusher-with-encryption" if encrypted else "pusher"
    return {"config": config, "nonce": nonce, "library": f"fanfare/vendor/pusher-js/{library}.min.js"}


def _url(name: str) -> str:
    try:
        return reverse(f"fanfare:{name}")
    except NoReverseMatch:
        raise template.TemplateSyntaxError(
            '{% fanfare_client %} needs the auth endpoints: add path("", include("fanfare.urls")) to the project\'s '
            "urlpatterns."
        ) from None
