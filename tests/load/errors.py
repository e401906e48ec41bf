"""Errors that make a measurement invalid."""

from __future__ import annotations


class LoadError(Exception):
    """Base class."""


class Unsuited(LoadError):
    """This machine cannot run the benchmark: too few cores or open files."""


class NotStarted(LoadError):
    """A server did not start."""


class Lost(LoadError):
    """A connection ended, or an event was duplicated, reordered, damaged or lost."""


class Refused(LoadError):
    """A server did not accept a publication."""
