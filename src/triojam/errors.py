"""Errors that are the operator's to mend, each with the exit status it means."""

from typing import ClassVar

# What is longer loses its middle: the culprit stands at the start, what it takes at the end.
SHOWN_START, SHOWN_END = 500, 300


class OperatorError(Exception):
    """The text is one line that names the culprit and says what is wrong with it.

    It is plain text that fits a screen, whatever a file, a variable or a word holds.
    """

    exit_status: ClassVar[int]

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
        if len(text) > SHOWN_START + SHOWN_END:
            text = f"{text[:SHOWN_START]} ... {text[-SHOWN_END:]}"
        return text


class ConfigurationError(OperatorError, ValueError):
    """The settings, or where they come from, or a word of the command line, cannot be used."""

    exit_status = 2


class ListenError(OperatorError):
    """A good address could not be listened on."""

    exit_status = 1


class LabError(OperatorError):
    """A program that the lab needs is missing or has failed."""

    exit_status = 1
