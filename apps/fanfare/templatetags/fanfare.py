"""`{% fanfare_client %}`: a connected pusher-js on the page.

    {% load fanfare %}
    {% fanfare_client nonce=request.csp_nonce %}
    <script src="{% static 'shop/orders.js' %}" nonce="{{ request.csp_nonce }}"></script>

Scripts after it find the client in `window.fanfare`. It knows the host that the browser asked, authorizes itself with
the page's session and CSRF token, and resumes where it was after a reconnect. Nothing of it is an inline script, so a
content security policy needs no more than `script-src 'self'` (or the nonce) and a `connect-src` with this host.
"""

from __future__ import annotations

import logging
from typing import Any

from django import template
from django.conf import settings
from django.http import HttpRequest
from django.middleware.csrf import get_token
from django.urls import reverse

from fanfare import errors
from fanfare.integration import clients

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
) -> dict[str, Any]:
    """A client of the project's default application. `nonce`: of the page's content security policy. `resume`: whether
    it catches up after a reconnect. `sign_in`: whether it signs in as the visitor. `encrypted`: whether it reads
    encrypted channels, with a script that is half as large again. `params`: what else reaches the project's rules, in
    `request.POST`.

    Without an application there is no client, and the rest of the page is as it is: the reason is logged as an error.
    """
    request: HttpRequest | None = context.get("request")
    if request is None:
        raise template.TemplateSyntaxError(
            "fanfare_client needs the request: render with it, and keep the context processor "
            "django.template.context_processors.request."
        )
    try:
        connection = clients.pusher_options(request)
    except errors.NoApplication as error:
        logger.error("No client on %s: %s", request.path, error)  # noqa: TRY400  the sentence says it all
        return {"config": None}
    config = {
        **connection,
        "authEndpoint": reverse("fanfare:auth"),
        "userAuthEndpoint": reverse("fanfare:user_auth"),
        "csrfToken": get_token(request),
        "csrfCookie": "" if settings.CSRF_USE_SESSIONS else settings.CSRF_COOKIE_NAME,
        "params": params or {},
        "signIn": sign_in,
    }
    library = "pusher-with-encryption" if encrypted else "pusher"
    return {"config": config, "nonce": nonce, "resume": resume, "library": f"fanfare/vendor/pusher-js/{library}.min.js"}
