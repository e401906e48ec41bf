"""The code for Go, PHP and Ruby: each snippet is a program that publishes, and a client receives the event."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.harness import servers, snippets, sockets

FOLDER = Path(__file__).parent
PATIENCE_S = 300.0  # the first build downloads the modules of Go


class Program(NamedTuple):
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path


def go(code: str, folder: Path, authority: Path | None, _autoload: Path) -> Program:
    shutil.copytree(FOLDER / "go", folder, dirs_exist_ok=True)
    imports = 'import (\n"fmt"\n"os"\n"github.com/pusher/pusher-http-go/v5"\n)\n'
    report = "if err != nil {\nfmt.Println(err)\nos.Exit(1)\n}\n"
    (folder / "main.go").write_text(f"package main\n{imports}func main() {{\n{code}{report}}}\n")
    return Program(["go", "run", "."], {} if authority is None else {"SSL_CERT_FILE": str(authority)}, folder)


def php(code: str, folder: Path, authority: Path | None, autoload: Path) -> Program:
    if "<?php" not in code:
        code = f'<?php\nrequire "vendor/autoload.php";\n{code}'
    (folder / "publish.php").write_text(code.replace("vendor/autoload.php", str(autoload)))
    trust = [] if authority is None else ["-d", f"curl.cainfo={authority}"]
    return Program(["php", *trust, "publish.php"], {}, folder)


def ruby(code: str, folder: Path, authority: Path | None, _autoload: Path) -> Program:
    (folder / "publish.rb").write_text(f'require "pusher"\n{code}')
    return Program(["ruby", "publish.rb"], {} if authority is None else {"SSL_CERT_FILE": str(authority)}, folder)


LANGUAGES = {"go": ("Go", go), "php": ("PHP", php), "ruby": ("Ruby", ruby)}


def check(
    languages: Sequence[str], addresses: snippets.Addresses, folder: Path, autoload: Path
) -> Iterator[tuple[str, bool]]:
    """What works, and what does not, with the addresses of a server with DEBUG."""
    plain = addresses["without TLS"]
    for language in languages:
        title, program = LANGUAGES[language]
        (code,), changes = snippets.section(title)
        programs = {words: (address, address.fill_in(code, changes)) for words, address in addresses.items()}
        if language == "php":
            programs["of the landing page"] = plain, snippets.of_landing(snippets.landing_page(plain.server), "PHP")
        for words, (address, filled_in) in programs.items():
            place = folder / f"{language} {words}"
            place.mkdir()
            made = program(filled_in, place, address.authority, autoload)
            yield f"{title} server {words}", asyncio.run(_delivers(made, address.server))


async def _delivers(program: Program, server: servers.Server) -> bool:
    """Whether the program ends well, and a subscriber gets its event."""
    async with sockets.connect(server) as client:
        await client.subscribe("orders")
        done = await asyncio.to_thread(_run, program)
        if done.returncode:
            print(done.stdout + done.stderr, flush=True)
            return False
        return (await client.skip_to("created", "orders")).decoded == {"id": 42}


def _run(program: Program) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **program.environment}
    return subprocess.run(
        program.command,
        cwd=program.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
