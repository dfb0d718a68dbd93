"""Errors that are the operator's to mend, each with the exit status it means, and the one voice they have."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

# A longer text loses its middle: the culprit stands at the start, the expected value at the end.
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
    """The settings, or where they come from, or a word of the command line, cannot be used.

    more: other errors that were found beside this one.
    """

    exit_status = 2
    more: "Sequence[ConfigurationError]" = ()


class ListenError(OperatorError):
    """A good address could not be listened on."""

    exit_status = 1


class LabError(OperatorError):
    """A program that the lab needs is missing or has failed."""

    exit_status = 1


def invalid_value(value: object, name: str, expected: str) -> ConfigurationError:
    """Make the error for a value that cannot be used. name: the flag, variable or key that has it."""
    return ConfigurationError(f"invalid value {shown(value)} for {name}: expected {expected}")


def shown(value: object) -> str:
    """Render a wrong value."""
    try:
        return repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes, or tables in each other
        return f"of type {type(value).__name__}"


def all_of(found: "Sequence[ConfigurationError]") -> ConfigurationError:
    """Make one error of several: the first, which knows the others."""
    first, *first.more = found
    return first


def unknown(what: str, word: str, known: Iterable[str], *, where: str = "") -> ConfigurationError:
    """Make the error for a word that means nothing. what: its kind, such as "option"."""
    import difflib  # noqa: PLC0415  # a start without an error does without

    named = word if word.startswith("-") or word.isupper() else repr(word)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "see triojam --help"
    return ConfigurationError(f"unknown {what} {named}{where}: {hint}")


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group, and in groups within it; an exception by itself, as it is."""
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            yield from leaves(each)
    else:
        yield exc
