"""`manage.py runserver` serves sockets wherever `fanfare` stands in INSTALLED_APPS.

Of several apps with a command of one name Django takes the first in INSTALLED_APPS, and `django.contrib.staticfiles`
brings a `runserver` that serves no WebSockets.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Final

from django.core import management
from django.core.exceptions import ImproperlyConfigured

NAME: Final = "runserver"
APP: Final = "fanfare"

# The apps whose command is replaced: ours does what theirs do. The command of any other app stays the project's choice.
REPLACED: Final = frozenset(
    {
        "django.core",
        "django.contrib.staticfiles",
        "daphne",
        "whitenoise.runserver_nostatic",
        "servestatic.runserver_nostatic",
    }
)


def take_over() -> None:
    """Give the command to Fanfare. Called when all apps are loaded, before Django looks for the command."""
    commands = management.get_commands()
    if owner() in REPLACED:
        commands[NAME] = APP


def owner() -> str:
    """The app whose `runserver` Django runs."""
    return management.get_commands()[NAME]


@contextlib.contextmanager
def or_end() -> Iterator[None]:
    """End `runserver` on wrong settings with their one sentence: Django would start its own server without any app."""
    try:
        yield
    except ImproperlyConfigured as error:
        if sys.argv[1:2] == [NAME]:
            sys.exit(str(error))
        raise
