"""The settings, all of them: one file, read from the environment. `.env.example` explains each variable.

A bad value stops the start with a sentence that names the variable and the value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fanfare import data_folder, environment
from fanfare.server import mounts, proxies
from myproject import databases

BASE_DIR = Path(__file__).resolve().parent.parent
environment.load(BASE_DIR / ".env")

# -- Fanfare -----------------------------------------------------------------------------------------------------------

# Everything that this installation writes. Another folder is another world: its own database, log, sockets and key.
FANFARE_DATA_DIR = data_folder.prepare(environment.path("FANFARE_DATA_DIR", "var", base=BASE_DIR))

# What the workers share. `local`: one machine, any number of workers, nothing to install.
FANFARE_ENGINE = environment.choice("FANFARE_ENGINE", "local", ["local"])
# What a 200 survives: the death of any process (`normal`), or loss of power too (`full`, about a third of the commits
# per second).
FANFARE_SYNC = environment.choice("FANFARE_SYNC", "normal", ["normal", "full"])
# How long the log keeps what has no history. A worker that was stopped for longer closes its connections and
# starts afresh.
FANFARE_LOG_SECONDS = environment.integer("FANFARE_LOG_SECONDS", 20, minimum=1, maximum=3600)
# How long a publisher waits for the log before it gets a 503.
FANFARE_APPEND_TIMEOUT = environment.seconds("FANFARE_APPEND_TIMEOUT", 5.0, minimum=0.1, maximum=60.0)

# The largest WebSocket message that a client may send; above it the connection is closed with 1009.
FANFARE_MAX_FRAME_BYTES = environment.integer("FANFARE_MAX_FRAME_BYTES", 131_072, minimum=1_024, maximum=16_777_216)
# What one slow reader may hold up in memory before it is disconnected.
FANFARE_BUFFER_BYTES = environment.integer("FANFARE_BUFFER_BYTES", 1_048_576, minimum=65_536, maximum=268_435_456)
# Seconds of silence after which a client sends a ping.
FANFARE_ACTIVITY_TIMEOUT = environment.integer("FANFARE_ACTIVITY_TIMEOUT", 120, minimum=5, maximum=3600)
# Seconds of silence after which an event stream gets a comment, so that proxies do not take it for dead.
FANFARE_SSE_HEARTBEAT = environment.seconds("FANFARE_SSE_HEARTBEAT", 15.0, minimum=0.1, maximum=300.0)
# Seconds, a fifth more or less, after which an event stream ends and its client comes back, maybe to another worker.
FANFARE_SSE_LIFE = environment.seconds("FANFARE_SSE_LIFE", 600.0, minimum=1.0, maximum=86_400.0)
# How many seconds a page that has a resume token may be away, and how often it is asked what it has seen.
FANFARE_RESUME_WINDOW = environment.integer("FANFARE_RESUME_WINDOW", 120, minimum=10, maximum=86_400)
FANFARE_RESUME_ACK_SECONDS = environment.seconds("FANFARE_RESUME_ACK_SECONDS", 5.0, minimum=0.1, maximum=60.0)
# Seconds that a stopping worker waits for open connections.
FANFARE_GRACEFUL_TIMEOUT = environment.integer("FANFARE_GRACEFUL_TIMEOUT", 5, minimum=1, maximum=300)

# Applications that are declared here and not in the admin, for containers; fanfare.applications reads the text.
FANFARE_APPS = environment.text("FANFARE_APPS")
# The id of the application that `publish()` uses; by default the oldest one.
FANFARE_DEFAULT_APP = environment.text("FANFARE_DEFAULT_APP")

# Whether an event that waits for a commit waits in the database, too, so that it survives the death of its process; and
# how long one that cannot be sent stays there for people.
FANFARE_OUTBOX = environment.flag("FANFARE_OUTBOX", default=False)
FANFARE_OUTBOX_KEEP_SECONDS = environment.integer(
    "FANFARE_OUTBOX_KEEP_SECONDS", 604_800, minimum=60, maximum=31_536_000
)

# How long an application's old secret works after a rotation, beside the new one; 0: not at all.
FANFARE_SECRET_GRACE_SECONDS = environment.integer("FANFARE_SECRET_GRACE_SECONDS", 86_400, minimum=0, maximum=2_592_000)

# What the keys of encrypted channels are made of: 32 bytes in base64. Whoever publishes to them has the same.
FANFARE_ENCRYPTION_MASTER_KEY = environment.secret_key("FANFARE_ENCRYPTION_MASTER_KEY", size=32)

# Whether webhooks may go to addresses inside the network. Off, because who edits an application is not always who may
# talk to everything that this machine can reach.
FANFARE_WEBHOOKS_ALLOW_PRIVATE = environment.flag("FANFARE_WEBHOOKS_ALLOW_PRIVATE", default=False)
# How long an event is tried before it is given up; the protocol promises five minutes.
FANFARE_WEBHOOKS_RETRY_SECONDS = environment.integer(
    "FANFARE_WEBHOOKS_RETRY_SECONDS", 3_600, minimum=300, maximum=604_800
)
# What one request may take, from the look-up of the name to the answer.
FANFARE_WEBHOOKS_TIMEOUT = environment.seconds("FANFARE_WEBHOOKS_TIMEOUT", 10.0, minimum=0.1, maximum=60.0)
# How long what was delivered or given up can be looked at in the admin, and how much of it.
FANFARE_WEBHOOKS_KEEP_SECONDS = environment.integer(
    "FANFARE_WEBHOOKS_KEEP_SECONDS", 259_200, minimum=60, maximum=31_536_000
)
FANFARE_WEBHOOKS_KEEP_ROWS = environment.integer("FANFARE_WEBHOOKS_KEEP_ROWS", 100_000, minimum=0, maximum=10_000_000)

# Who may say for whom they speak: addresses, networks, or `unix` for a peer on a Unix socket.
FANFARE_TRUSTED_PROXIES = proxies.Trusted(environment.listed("FANFARE_TRUSTED_PROXIES"))

# Other ASGI applications in this process, each under a prefix: /shop=shop.main:app. Here it may be a dict, too.
FANFARE_ASGI_MOUNTS = mounts.parse(environment.text("FANFARE_ASGI_MOUNTS"))

# Where `make run` and `manage.py runserver` serve.
FANFARE_HOST = environment.text("FANFARE_HOST", "127.0.0.1")
FANFARE_PORT = environment.integer("FANFARE_PORT", 8000, minimum=1, maximum=65_535)

# -- Security ----------------------------------------------------------------------------------------------------------

DEBUG = environment.flag("FANFARE_DEBUG", default=False)
# The live room at /demo/, where anybody may write: to see that a deployment works, and then to be turned off.
FANFARE_DEMO = environment.flag("FANFARE_DEMO", default=True)
SECRET_KEY = environment.text("FANFARE_SECRET_KEY") or data_folder.secret_key(FANFARE_DATA_DIR)
ALLOWED_HOSTS = environment.listed("FANFARE_ALLOWED_HOSTS", ["localhost", ".localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = environment.listed("FANFARE_CSRF_TRUSTED_ORIGINS")
# Other hosts whose pages may use the auth endpoints with a visitor's session; see apps/fanfare/integration/cors.py.
FANFARE_CORS_ORIGINS = environment.origins("FANFARE_CORS_ORIGINS")

# Whether browsers reach this server by https. The server in front does the redirecting, so SECURE_SSL_REDIRECT stays
# off: behind a proxy that is not in FANFARE_TRUSTED_PROXIES every request looks like http, and the redirect would never
# end.
FANFARE_TLS = environment.flag("FANFARE_TLS", default=False)
SESSION_COOKIE_SECURE = FANFARE_TLS
CSRF_COOKIE_SECURE = FANFARE_TLS
SECURE_HSTS_SECONDS = environment.integer(
    "FANFARE_HSTS_SECONDS", 3600 if FANFARE_TLS else 0, minimum=0, maximum=63_072_000
)
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # HSTS for subdomains: not ours to decide
    "security.W008",  # SECURE_SSL_REDIRECT: see above
    "security.W012",  # SESSION_COOKIE_SECURE and
    "security.W016",  # CSRF_COOKIE_SECURE follow FANFARE_TLS, and fanfare.W002 is about that one
    "security.W021",  # HSTS preload: not ours to decide
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

# -- Django ------------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "myproject",
    "fanfare",
    "demo",
    "channels",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
if not FANFARE_DEMO:
    INSTALLED_APPS.remove("demo")

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "myproject.urls"
ASGI_APPLICATION = "myproject.asgi.application"

DATABASES = {
    "default": databases.parse(environment.text("DATABASE_URL"), default=FANFARE_DATA_DIR / "db.sqlite3", base=BASE_DIR)
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Django caches templates with DEBUG, too, and only its own runserver empties that cache: under uvicorn an edited
# template would not be seen. So with DEBUG the loaders are named, which leaves the cache out.
_LOADERS = ["django.template.loaders.filesystem.Loader", "django.template.loaders.app_directories.Loader"]
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],  # `myproject` is an app, and the first one: its templates win
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
            "loaders": _LOADERS if DEBUG else [("django.template.loaders.cached.Loader", _LOADERS)],
        },
    }
]

# Served by the project itself (see static_files.py), straight from the apps' folders. STATIC_ROOT is for those who run
# collectstatic and let another server answer /static/.
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"

LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "/"

LANGUAGE_CODE = "en-us"
USE_TZ = True
TIME_ZONE = "UTC"  # Django puts it in TZ, so the log lines of every worker carry the same zone

# -- Logging -----------------------------------------------------------------------------------------------------------

# uvicorn and gunicorn bring handlers for loggers of their own, which do not propagate. These are the project's and
# everything else's.
FANFARE_LOG_LEVEL = environment.choice("FANFARE_LOG_LEVEL", "info", ["debug", "info", "warning", "error", "critical"])
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} [{process}] {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "fanfare": {"level": FANFARE_LOG_LEVEL.upper()},
        "demo": {"level": FANFARE_LOG_LEVEL.upper()},
        "myproject": {"level": FANFARE_LOG_LEVEL.upper()},
        # Django's default sends errors to a console only with DEBUG, and otherwise by mail to nobody.
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "django.utils.autoreload": {"level": "INFO"},
    },
}
