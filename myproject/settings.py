"""Django's settings of this project, read from the environment and from `.env`.

Fanfare's own settings are environment variables FANFARE_…, or a dict `FANFARE` in this file; docs/reference/settings.md
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

# Fanfare's log, the secret key and the SQLite database.
DATA_DIR = data_folder.prepare(environment.path("FANFARE_DATA_DIR", "var", base=BASE_DIR))

DEBUG = environment.flag("FANFARE_DEBUG", default=False)
SECRET_KEY = environment.text("FANFARE_SECRET_KEY") or data_folder.secret_key(DATA_DIR)
ALLOWED_HOSTS = environment.listed("FANFARE_ALLOWED_HOSTS", ["localhost", ".localhost", "127.0.0.1", "[::1]"])

# Fanfare's settings of this project; environment variables win over them.
FANFARE = {"MAX_PAGE_BODY_BYTES": 26_214_400}  # the largest request body that a page takes; Django has no limit

# -- Apps --------------------------------------------------------------------------------------------------------------

FANFARE_DEMO = environment.flag("FANFARE_DEMO", default=True)  # the chat room at /demo/

INSTALLED_APPS = [
    "myproject",
    "fanfare",
    *(["demo"] if FANFARE_DEMO else []),
    "channels",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "fanfare.middleware.ContentSecurityPolicy",
    "fanfare.middleware.LoginThrottle",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "myproject.urls"
ASGI_APPLICATION = "myproject.asgi.application"
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "/"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],  # templates of `myproject` win: it is the first app
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

# Fanfare serves static files from the apps' folders. STATIC_ROOT is for collectstatic and a server in front.
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
DOCUMENTATION = BASE_DIR / "var" / "site"  # made by `make docs`

# -- Database ----------------------------------------------------------------------------------------------------------

DATABASES = {
    "default": databases.parse(environment.text("DATABASE_URL"), default=DATA_DIR / "db.sqlite3", base=BASE_DIR)
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# -- Security ----------------------------------------------------------------------------------------------------------

CSRF_TRUSTED_ORIGINS = environment.listed("FANFARE_CSRF_TRUSTED_ORIGINS")

# Whether browsers use https. The server in front redirects to it, so SECURE_SSL_REDIRECT stays off: behind a proxy that
# is missing in FANFARE_TRUSTED_PROXIES every request looks like http, and the redirect would never end.
FANFARE_TLS = environment.flag("FANFARE_TLS", default=False)
SESSION_COOKIE_SECURE = FANFARE_TLS
CSRF_COOKIE_SECURE = FANFARE_TLS
SECURE_HSTS_SECONDS = environment.integer(
    "FANFARE_HSTS_SECONDS", 3600 if FANFARE_TLS else 0, minimum=0, maximum=63_072_000
)
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # HSTS for subdomains, and
    "security.W021",  # HSTS preload: a decision about the whole domain
    "security.W008",  # SECURE_SSL_REDIRECT: see above
    "security.W012",  # SESSION_COOKIE_SECURE and
    "security.W016",  # CSRF_COOKIE_SECURE: fanfare.W002 warns about FANFARE_TLS
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

# -- Language, time and logging ----------------------------------------------------------------------------------------

LANGUAGE_CODE = "en-us"
USE_TZ = True
TIME_ZONE = "UTC"  # Django sets TZ to it, so the log lines of all workers have the same zone

# uvicorn and gunicorn configure their own loggers; these are all others.
_LEVEL = environment.choice("FANFARE_LOG_LEVEL", "info", ["debug", "info", "warning", "error", "critical"]).upper()
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} [{process}] {levelname} {name}: {message}", "style": "{"}},
    # A flood of refused requests must not fill the disk.
    "filters": {"throttled": {"()": "fanfare.runtime.log_throttle.ThrottledRefusals"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["throttled"]}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        **{name: {"level": _LEVEL} for name in ("fanfare", "demo", "myproject")},
        "django": {"handlers": [], "level": "INFO", "propagate": True},  # without DEBUG Django writes to no console
        "django.utils.autoreload": {"level": "INFO"},
    },
}
