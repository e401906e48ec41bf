"""The code of docs/how-to/point-sdks.md that needs a page: the auth endpoint with a CSRF token."""

from __future__ import annotations

import re

from tests.browser.conftest import OpenWindow
from tests.harness import servers
from tests.unit.docs import pages

PAGE = pages.ROOT / "docs/how-to/point-sdks.md"


def test_channel_authorization_snippet_subscribes_to_a_presence_channel(
    window: OpenWindow, production: servers.Server
) -> None:
    """On the login page of the admin, which has a CSRF token. The rule of the demo's channel needs a guest."""
    connect, authorize = [block.text for block in pages.blocks(PAGE) if block.language == "js"][:2]
    (options,) = re.findall(r"new Pusher\(\"YOUR_KEY\", (\{.*?\})\);", connect, re.DOTALL)
    options = options.replace("realtime.example.com", servers.HOST).replace("443", str(production.port))
    options = options.replace("forceTLS: true", "forceTLS: false")
    page = window()
    page.goto(production.url("/admin/login/"))
    page.add_script_tag(url=production.url("/static/fanfare/vendor/pusher-js/pusher.min.js"))
    members = page.evaluate(
        f"""
        (key) => new Promise((resolve, reject) => {{
          {authorize}
          options.channelAuthorization.params = {{ guest: "amber-harp" }};
          const pusher = new Pusher(key, {{ ...{options}, ...options }});
          pusher.subscribe("presence-demo")
            .bind("pusher:subscription_succeeded", ({{ count }}) => resolve(count))
            .bind("pusher:subscription_error", reject);
        }})
        """,
        production.application.key,
    )
    assert members >= 1
