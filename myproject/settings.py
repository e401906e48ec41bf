"""Django's settings for this project, read from the environment and from `.env`.

Fanfare has settings of its own: environment variables FANFARE_…, or a dict `FANFARE` here. docs/reference/settings.md
explains all of them. A wrong value stops the start with a sentence that names the variable and the value.
"""

from __future__ import annotations

import os
from pathlib import Path

import dotenv
from django.core.exceptions import ImproperlyConfigured

from fanfare import data_folder, environment
from myproject import databases

BASE_DIR = Path(__file__).resolve().parent.parent

try:  # the real environment wins over the file
    dotenv.load_dotenv(os.environ.get("FANFARE_ENV_FILE") or BASE_DIR / ".env", override=False, interpolate=False)
except (OSError, UnicodeDecodeError) as error:
    raise ImproperlyConfigured(f"The environment file cannot be read: {error}.") from error

# Fanfare's log and sockets, the secret key and the SQLite database.
DATA_DIR = data_folder.prepare(environment.path("FANFARE_DATA_DIR", "var", base=BASE_DIR))

# The largest body that a page of this project takes; Django itself has no limit.
FANFARE = {"MAX_PAGE_BODY_BYTES": 26_214_400}

# -- Security ----------------------------------------------------------------------------------------------------------

DEBUG = environment.flag("FANFARE_DEBUG", default=False)
# The live room at /demo/, where anybody may write: to see that a deployment works, and then to be turned off.
FANFARE_DEMO = environment.flag("FANFARE_DEMO", default=True)
SECRET_KEY = environment.text("FANFARE_SECRET_KEY")
if not SECRET_KEY:
    if "://" in environment.text("FANFARE_ENGINE"):
        raise ImproperlyConfigured(
            "FANFARE_ENGINE shares a log between machines, and each data folder has another secret key: set "
            "FANFARE_SECRET_KEY to the same value on every machine."
        )
    SECRET_KEY = data_folder.secret_key(DATA_DIR)
ALLOWED_HOSTS = environment.listed("FANFARE_ALLOWED_HOSTS", ["localhost", ".localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = environment.listed("FANFARE_CSRF_TRUSTED_ORIGINS")

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
    "default": databases.parse(environment.text("DATABASE_URL"), default=DATA_DIR / "db.sqlite3", base=BASE_DIR)
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],  # `myproject` is an app, and the first one: its templates win
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
        "APP_DIRS": True,
    }
]

# Fanfare serves them, from the apps' folders. STATIC_ROOT is for `collectstatic`.
STATIC_URL = "static/"
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
