"""Run the code of docs/how-to/point-sdks.md and the landing page for Java, Kotlin, Go, PHP and Ruby against a server.

Prints what works; exits with 1 if anything does not. tests/integration/test_sdk_languages.py runs Java, Kotlin and Go.
Java needs a JDK and Maven, and Go its tools; both download the libraries. PHP and Ruby need the library: for PHP the
file that loads it, for Ruby an installed gem or RUBYLIB.

python -m tests.sdks [java] [go] [php --autoload vendor/autoload.php] [ruby]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

from tests.harness import servers, snippets
from tests.sdks import backends, java


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sdks", description=__doc__)
    parser.add_argument("language", nargs="*", default=["java", "go"], choices=["java", *backends.LANGUAGES])
    parser.add_argument("--autoload", default="vendor/autoload.php", help="for PHP (default: %(default)s)")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="fanfare-sdks-") as name:
        folder = Path(name)
        fleet = servers.Fleet(folder)
        try:
            server = fleet.start("gunicorn", fleet.deployment(FANFARE_DEBUG="1"))
            with snippets.addresses(server, folder) as addresses:
                others = [each for each in options.language if each != "java"]
                outcomes = [backends.check(others, addresses, folder, Path(options.autoload).resolve())]
                if "java" in options.language:
                    outcomes.append(java.check(java.Machine(folder), addresses))
                for what, works in itertools.chain.from_iterable(outcomes):
                    print("works " if works else "FAILS ", what, flush=True)
                    failed = failed or not works
        finally:
            fleet.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
