"""The project's settings with a temporary data folder: tests read no developer's `.env` and do not touch `var/`."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

for _name in [name for name in os.environ if name.startswith("FANFARE_") or name == "DATABASE_URL"]:
    del os.environ[_name]

_folder = tempfile.mkdtemp(prefix="fanfare-tests-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)

os.environ["FANFARE_ENV_FILE"] = os.devnull
os.environ["FANFARE_DATA_DIR"] = _folder
os.environ["FANFARE_SECRET_KEY"] = "only for tests, and long enough that Django's own checks are content"

from myproject.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.MD5PasswordHasher"
]  # hundreds of tests log in; none of them tests the hash

# A file as in production, not SQLite's shared memory: there, a reader and a writer in two threads refuse each other at
# once.
DATABASES["default"]["TEST"] = {"NAME": os.path.join(_folder, "test.sqlite3")}  # noqa: F405, PTH118
