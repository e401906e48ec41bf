"""What makes a measurement worthless. To go on after one of these would be to print a number that means nothing."""

from __future__ import annotations


class LoadError(Exception):
    """The root of this tree."""


class Unsuited(LoadError):
    """This machine cannot run the benchmark: too few cores, too few files."""


class NotStarted(LoadError):
    """A server did not come up."""


class Lost(LoadError):
    """A connection ended, or something was delivered twice, in another order, damaged or not at all."""


class Refused(LoadError):
    """A server did not accept a publication."""
