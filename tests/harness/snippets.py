"""The code of docs/how-to/point-sdks.md, filled in for a server.

Only the placeholders are replaced: the credentials, the host, the port and the file of the certificate authority.
"""

from __future__ import annotations

import contextlib
import html
import re
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.harness import parts, proxies, servers
from tests.unit.docs import pages

PAGE = pages.ROOT / "docs/how-to/point-sdks.md"
HOSTS = ("realtime.example.com", "realtime.internal")
AUTHORITY = "/etc/ssl/our-authority.pem"
_GIVES = r"['\"]?(?:\s*(?:=>|[:=])\s*|\()"  # between an option's name and its value


class Address:
    """An address of the server for the snippets. `authority`: the file of its certificate; None without TLS."""

    def __init__(self, server: servers.Server, port: int, authority: Path | None) -> None:
        self.server = server
        self.port = port
        self.authority = authority

    @property
    def environment(self) -> dict[str, str]:
        """What Node and websocket-client read, so that they accept the certificate."""
        if self.authority is None:
            return {}
        return dict.fromkeys(("NODE_EXTRA_CA_CERTS", "WEBSOCKET_CLIENT_CA_BUNDLE"), str(self.authority))

    def fill_in(self, code: str, changes: dict[str, str]) -> str:
        """The code for this address. `changes`: values by name for servers without TLS."""
        if self.authority is None:
            for name, value in changes.items():
                code, count = re.subn(rf"\b{name}({_GIVES})[^,\n)]+", rf"{name}\g<1>{value}", code)
                assert count == 1, f"{name} appears {count} times in:\n{code}"
        application = self.server.application
        values = {
            "YOUR_ID": application.id,
            "YOUR_KEY": application.key,
            "YOUR_SECRET": application.secret,
            AUTHORITY: str(self.authority),
            **dict.fromkeys(HOSTS, servers.HOST),
        }
        for placeholder, value in values.items():
            code = code.replace(placeholder, value)
        code = code.replace(f"{servers.HOST}:443", f"{servers.HOST}:{self.port}")
        code = code.replace(f"{servers.HOST}:8000", f"{servers.HOST}:{self.port}")
        return re.sub(rf"(\b\w*[pP]ort\b{_GIVES}\"?)(?:443|8000)\b", rf"\g<1>{self.port}", code)


@contextlib.contextmanager
def behind_tls(server: servers.Server, folder: Path) -> Iterator[Address]:
    """The server behind a proxy with TLS, whose certificate is in `folder`."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [parts.executable("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=tests"]
    command += ["-addext", f"subjectAltName=IP:{servers.HOST}"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with proxies.in_front_of(server, tls=context) as proxy:
        yield Address(server, proxy.port, certificate)


Addresses = Mapping[str, Address]  # by their description: "with TLS", "without TLS"


@contextlib.contextmanager
def addresses(server: servers.Server, folder: Path) -> Iterator[Addresses]:
    """Both addresses of a server, whose certificate is in `folder`."""
    with behind_tls(server, folder) as tls:
        yield {"with TLS": tls, "without TLS": Address(server, server.port, None)}


def section(title: str) -> tuple[list[str], dict[str, str]]:
    """The code blocks below a heading of the page, and the changes for servers without TLS, as values by name."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"\n### {title}\n")
    assert rest, f"the page has no section {title}"
    text = re.split(r"^##+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    sentence = re.search(r"^Without TLS: ((?:`[^`]*`|[^.`])*)\.", text, re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", sentence[1]) if sentence else []
    pairs = [re.fullmatch(rf"'?(\w+){_GIVES}(.+?)\)?", pair) for span in spans for pair in span.split(", ")]
    return re.findall(r"^```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL), {
        pair[1]: pair[2] for pair in pairs if pair
    }


def landing_page(server: servers.Server) -> str:
    """The HTML of a server's landing page; with DEBUG, its snippets have the server's values."""
    with urllib.request.urlopen(server.url("/")) as answer:
        return str(answer.read().decode())


def of_landing(page: str, tab: str) -> str:
    """A snippet of the landing page, from the page's HTML."""
    (code,) = re.findall(rf'data-tab="{tab}">.*?<code>(.*?)</code>', page, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", "", code))
