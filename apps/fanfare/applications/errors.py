"""The exceptions of this package.

ApplicationsError
├── DeclarationError          FANFARE_APPS is invalid or conflicts with the database; the server does not start
├── DeclaredApplicationError  FANFARE_APPS declares this application, so it cannot be changed here
├── DefaultApplicationError   FANFARE_DEFAULT_APP names an application that does not exist
└── DatabaseUnusableError     Django's database is unavailable or not migrated; try again
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured


class ApplicationsError(Exception):
    """Base class. `code` is for programs, the message for people. No message contains a secret."""

    code = "applications_error"


class DeclarationError(ApplicationsError, ImproperlyConfigured):
    """FANFARE_APPS is invalid; the message names the entry and the field."""

    code = "declaration_error"


class DeclaredApplicationError(ApplicationsError):
    """The application is declared in FANFARE_APPS and can be changed only there."""

    code = "declared_application"


class DefaultApplicationError(ApplicationsError, ImproperlyConfigured):
    """The message names the setting and its value."""

    code = "default_application_error"


class DatabaseUnusableError(ApplicationsError):
    """The message gives the reason in one sentence."""

    code = "database_unusable"
