"""The code for Java and Kotlin, with all features of Pusher's libraries. Maven downloads them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pusher

from tests.harness import backends, sdk, servers, snippets

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

    def compile_kotlin(self, programs: Mapping[str, str]) -> None:
        """Compile programs that run until they are ended. The class of `name` is `name.SnippetKt`."""
        sources = []
        for name, code in programs.items():
            imports = re.findall(r"^import .*\n", code, re.MULTILINE)
            body = re.sub(r"^import .*\n", "", code, flags=re.MULTILINE)
            source = self.folder / name / "Snippet.kt"
            source.parent.mkdir()
            head = f"package {name}\n{''.join(imports) or IMPORTS.replace(';', '')}"
            source.write_text(f"{head}fun main() {{\n{body}\nThread.currentThread().join()\n}}\n")
            sources.append(str(source))
        arguments = ["-no-stdlib", "-no-reflect", "-nowarn", "-cp", self.classpath, "-d", str(self.folder), *sources]
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

    def trust(self, authority: Path | None) -> list[str]:
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


def gets_event(process: subprocess.Popen[str], signer: pusher.Pusher) -> bool:
    """Publish until the program prints an event. Returns whether it is that event."""
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
    return json.loads(line.removeprefix("order ") or "null") == {"id": 42}


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


def check(machine: Machine, addresses: snippets.Addresses) -> Iterator[tuple[str, bool]]:
    """What works, and what does not, with the addresses of a server with DEBUG."""
    server = addresses["with TLS"].server
    signer = sdk.client(server)
    trusted = machine.trust(addresses["with TLS"].authority)
    (java, kotlin), changes = snippets.section(CLIENT)
    (publish,), publish_changes = snippets.section(SERVER)
    publish = publish.replace("pusher.trigger(", "Object result = pusher.trigger(")
    publish += "System.out.println(((com.pusher.rest.data.Result) result).getHttpStatus());\nSystem.exit(0);\n"
    programs = {words: address.fill_in(kotlin, changes) for words, address in addresses.items()}
    programs["of the landing page"] = snippets.of_landing(snippets.landing_page(server), "Kotlin")
    names = {words: words.replace(" ", "_") for words in programs}
    machine.compile_kotlin({names[words]: code for words, code in programs.items()})
    for words, name in names.items():
        with machine.running(*trusted, f"{name}.SnippetKt") as process:
            yield f"Kotlin client {words}", gets_event(process, signer)
    for words, address in addresses.items():
        code = address.fill_in(java, changes) + "Thread.currentThread().join();\n"
        with machine.running(*trusted, machine.snippet(code)) as process:
            yield f"Java client {words}", gets_event(process, signer)
        status = machine.java(*trusted, machine.snippet(address.fill_in(publish, publish_changes)))
        yield f"Java server {words}", status.strip() == "200"
    found = features(machine, server)
    for feature in sorted(FEATURES | found):
        yield feature, feature in FEATURES & found
