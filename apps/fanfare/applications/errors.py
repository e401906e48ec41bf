"""The exceptions of this package.

ApplicationsError
├── DeclarationError          FANFARE_APPS cannot be read, or contradicts the database; the start stops
├── DeclaredApplicationError  the change is refused: this application is what FANFARE_APPS says
├── DefaultApplicationError   FANFARE_DEFAULT_APP names an application that does not exist
└── DatabaseUnusableError     Django's database is away or not migrated; try again
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured


class ApplicationsError(Exception):
    """Base class. `code` is for machines, the message for people. No message holds a secret."""

    code = "applications_error"


class DeclarationError(ApplicationsError, ImproperlyConfigured):
    """FANFARE_APPS is wrong; the message names the entry and the field."""

    code = "declaration_error"


class DeclaredApplicationError(ApplicationsError):
    """The environment is the truth of this application, so it is changed there."""

    code = "declared_application"


class DefaultApplicationError(ApplicationsError, ImproperlyConfigured):
    """The message names the setting and its value."""

    code = "default_application_error"


class DatabaseUnusableError(ApplicationsError):
    """The message says why, in one sentence."""

    code = "database_unusable"
