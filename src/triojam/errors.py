"""Errors that are the operator's to mend, each with the exit status it means."""

from typing import ClassVar


class OperatorError(Exception):
    """The text is one line that names the culprit and says what is wrong with it."""

    exit_status: ClassVar[int]


class ConfigurationError(OperatorError, ValueError):
    """The settings, or where they come from, or a word of the command line, cannot be used."""

    exit_status = 2


class ListenError(OperatorError):
    """A good address could not be listened on."""

    exit_status = 1


class LabError(OperatorError):
    """A program that the lab needs is missing or has failed."""

    exit_status = 1
