"""Run code of docs/how-to/point-sdks.md against a server: of Java and Kotlin with all features, of Go, PHP and Ruby.

Prints what works; exits with 1 if anything does not. Java needs a JDK and Maven, and Go its tools; both download the
libraries. PHP and Ruby need the library: for PHP the file that loads it, for Ruby an installed gem or RUBYLIB.

python -m tests.sdks [java] [go] [php --autoload vendor/autoload.php] [ruby]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pusher

from tests.harness import backends, sdk, servers, snippets
from tests.sdks import backends as programs

FOLDER = Path(__file__).parent
CLIENT, SERVER = "Java and Kotlin: pusher-java-client", "Java"
SECTIONS = (CLIENT, SERVER)
PATIENCE_S = 120.0

IMPORTS = "import com.pusher.client.*;\nimport com.pusher.client.connection.*;\n"
JAVA = "public class Snippet {{ public static void main(String[] arguments) throws Exception {{\n{code}\n}} }}\n"
# The snippets do not say when they have subscribed, so the event is published until it arrives.
ATTEMPTS, PAUSE_S = 100, 0.3

FEATURES = {
    'public {"id": 42}',
    'client event {"on":true}',
    'decrypted {"id": 42}',
    'user {"id": 42}',
    "members [ann, bob]",
    "joined bob",
}


class Endpoint(BaseHTTPRequestHandler):
    """An auth endpoint: /channel/USER and /user/USER sign for that user."""

    signer: pusher.Pusher

    def do_POST(self) -> None:
        form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        _, kind, user = self.path.split("/")
        if kind == "user":
            answer = self.signer.authenticate_user(form["socket_id"], {"id": user})
        else:
            member = {"user_id": user} if form["channel_name"].startswith("presence-") else None
            answer = self.signer.authenticate(form["channel_name"], form["socket_id"], member)
            if isinstance(answer.get("shared_secret"), bytes):
                answer["shared_secret"] = answer["shared_secret"].decode()
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def auth_endpoint(signer: pusher.Pusher) -> Iterator[str]:
    """Yields its URL."""
    handler = type("Signing", (Endpoint,), {"signer": signer})
    with ThreadingHTTPServer((servers.HOST, 0), handler) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        yield f"http://{servers.HOST}:{endpoint.server_port}"
        endpoint.shutdown()


class Machine:
    """The JDK with the libraries. `folder`: for what it compiles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = folder / "classpath"
        command = ["mvn", "-q", "-B", "-f", str(FOLDER / "pom.xml"), "dependency:build-classpath"]
        subprocess.run([*command, f"-Dmdep.outputFile={listed}"], check=True, timeout=600)
        self.classpath = f"{listed.read_text()}{os.pathsep}{folder}"

    def compile_kotlin(self, code: str) -> None:
        source = self.folder / "Snippet.kt"
        source.write_text(f"{IMPORTS.replace(';', '')}fun main() {{\n{code}\n}}\n")
        arguments = ["-no-stdlib", "-no-reflect", "-nowarn", "-cp", self.classpath, "-d", str(self.folder), str(source)]
        self.java("org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", *arguments)

    def java(self, *arguments: str) -> str:
        """Run a program to its end. Returns its output."""
        done = subprocess.run(
            ["java", "-cp", self.classpath, *arguments], capture_output=True, text=True, check=True, timeout=PATIENCE_S
        )
        return done.stdout

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a program until the end of the block, at most for PATIENCE_S."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(["java", "-cp", self.classpath, *arguments], stdin=pipe, stdout=pipe, text=True)
        timer = threading.Timer(PATIENCE_S, process.kill)
        timer.start()
        with process:
            try:
                yield process
            finally:
                timer.cancel()
                process.kill()

    def trust(self, authority: Path) -> list[str]:
        """Options of `java` with which it accepts the certificate."""
        store = self.folder / "authorities.p12"
        command = ["keytool", "-importcert", "-noprompt", "-storepass", "changeit", "-storetype", "PKCS12"]
        command += ["-keystore", str(store), "-file", str(authority)]
        subprocess.run(command, check=True, capture_output=True)
        return [f"-Djavax.net.ssl.trustStore={store}", "-Djavax.net.ssl.trustStorePassword=changeit"]

    def snippet(self, code: str) -> str:
        """The file of a Java program with this code."""
        source = self.folder / "Snippet.java"
        imports = "import java.util.*;\n" + (IMPORTS if "PusherOptions" in code else "import com.pusher.rest.*;\n")
        source.write_text(imports + JAVA.format(code=code))
        return str(source)


def first_line(process: subprocess.Popen[str], signer: pusher.Pusher) -> str:
    """Publish until the program prints an event."""
    assert process.stdout is not None
    printed = threading.Event()

    def publish() -> None:
        for _ in range(ATTEMPTS):
            signer.trigger("orders", "created", {"id": 42})
            if printed.wait(PAUSE_S):
                return

    publisher = threading.Thread(target=publish)
    publisher.start()
    line = process.stdout.readline().strip()
    printed.set()
    publisher.join()
    return line


def features(machine: Machine, server: servers.Server) -> set[str]:
    """What the program reports."""
    signer = sdk.client(server, encryption_master_key_base64=backends.MASTER_KEY)
    application, found = server.application, set()
    with (
        auth_endpoint(signer) as url,
        machine.running(str(FOLDER / "Features.java"), application.key, servers.HOST, str(server.port), url) as process,
    ):
        ended = threading.Event()

        def publish() -> None:
            while not ended.wait(PAUSE_S):
                signer.trigger(["news"], "created", {"id": 42})
                signer.trigger("private-encrypted-orders", "created", {"id": 42})
                signer.send_to_user("ann", "created", {"id": 42})

        publisher = threading.Thread(target=publish)
        publisher.start()
        assert process.stdout is not None
        for line in process.stdout:
            found.add(line.strip())
            if found >= FEATURES:
                break
        ended.set()
        publisher.join()
    return found


def check(machine: Machine, server: servers.Server, tls: snippets.Address) -> Iterator[tuple[str, bool]]:
    """What works, and what does not."""
    signer = sdk.client(server)
    plain = snippets.Address(server, server.port, None)
    trusted = machine.trust(tls.authority) if tls.authority is not None else []
    for address, options, words in ((tls, trusted, "with TLS"), (plain, [], "without TLS")):
        (java, kotlin), changes = snippets.section(CLIENT)
        java += "Thread.currentThread().join();\n"
        kotlin += "Thread.currentThread().join()\n"
        with machine.running(*options, machine.snippet(address.fill_in(java, changes))) as process:
            yield f"Java client {words}", json.loads(first_line(process, signer) or "null") == {"id": 42}
        machine.compile_kotlin(address.fill_in(kotlin, changes))
        with machine.running(*options, "SnippetKt") as process:
            yield f"Kotlin client {words}", json.loads(first_line(process, signer) or "null") == {"id": 42}
        (java,), changes = snippets.section(SERVER)
        code = address.fill_in(java.replace("pusher.trigger(", "Object result = pusher.trigger("), changes)
        report = "System.out.println(((com.pusher.rest.data.Result) result).getHttpStatus());\nSystem.exit(0);\n"
        yield f"Java server {words}", machine.java(*options, machine.snippet(code + report)).strip() == "200"
    found = features(machine, server)
    for feature in sorted(FEATURES | found):
        yield feature, feature in FEATURES & found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sdks", description=__doc__)
    parser.add_argument("language", nargs="*", default=["java", "go"], choices=["java", *programs.LANGUAGES])
    parser.add_argument("--autoload", default="vendor/autoload.php", help="for PHP (default: %(default)s)")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="fanfare-sdks-") as name:
        folder = Path(name)
        fleet = servers.Fleet(folder)
        try:
            server = fleet.start("gunicorn", fleet.deployment())
            with snippets.behind_tls(server, folder) as tls:
                addresses = {"with TLS": tls, "without TLS": snippets.Address(server, server.port, None)}
                others = [each for each in options.language if each != "java"]
                outcomes = [programs.check(others, addresses, folder, str(Path(options.autoload).resolve()))]
                if "java" in options.language:
                    outcomes.append(check(Machine(folder), server, tls))
                for what, works in itertools.chain.from_iterable(outcomes):
                    print("works " if works else "FAILS ", what, flush=True)
                    failed = failed or not works
        finally:
            fleet.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
