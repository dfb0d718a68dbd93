"""What the commands of every side have in common: their applications, their numbers, their error lines."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Literal, cast, get_args, get_origin

from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

from triojam.cli.console import Console
from triojam.errors import ConfigurationError, invalid_value, unknown
from triojam.version import __version__

# Functions that return an exit status, each with the arguments of three examples.
Commands = dict[Callable[..., int], tuple[str, str, str]]

# Says what an argument takes; None if that is not known.
Expected = Callable[[Argument], str | None]

_WHOLE = (int, int | None)
_WHOLE_NUMBER = re.compile(r"[+-]?\d+|none", re.IGNORECASE | re.ASCII)


def _positive(_type: type, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError("a number above 0")


def _not_negative(_type: type, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError("a number, 0 or more")


def _port(_type: type, value: int) -> None:
    if not 0 <= value <= 65535:
        raise ValueError("a port from 0 to 65535")


# cyclopts' own validators let NaN through.
Positive = Parameter(validator=_positive)
NotNegative = Parameter(validator=_not_negative)
PortNumber = Parameter(validator=_port)


def make_app_of(commands: Commands) -> App:
    """Make an application that has only these commands."""
    app = App(
        name="triojam",
        version=__version__,
        help_format="plaintext",
        console=Console(),
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
    register_all(app, commands)
    return app


def register_all(app: App, commands: Commands) -> None:
    """Add commands to an application."""
    for command, examples in commands.items():
        # Their own config: what configures a server is not for them.
        epilogue = "\n".join(
            ["Examples:", "", *(f"    triojam {command.__name__} {each}".rstrip() for each in examples)]
        )
        text = unwrapped(command.__doc__ or "")
        app.command(command, config=(check_whole_numbers,), help=text, help_epilogue=epilogue)


def unwrapped(text: str) -> str:
    """Make one line of each paragraph: the terminal's width is not that of the source."""
    return "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))


def check_whole_numbers(
    _app: App,
    _commands: tuple[str, ...],
    arguments: ArgumentCollection,
    expected: Expected = lambda _argument: None,
) -> None:
    """Refuse 1.5 where a whole number is expected: cyclopts would round it. A source that adds nothing."""
    for argument in arguments:
        for token in argument.tokens:
            if argument.hint in _WHOLE and not _WHOLE_NUMBER.fullmatch(token.value):
                takes = expected(argument) or "a whole number"
                raise invalid_value(token.value, origin(argument, token), takes)


def origin(argument: Argument, token: Token) -> str:
    """Return where a value comes from: a flag, an environment variable, or a key of the file."""
    if token.source in ("", "cli", "env"):
        return token.keyword or argument.name.lstrip("-").upper()
    return f"{argument.field_info.name} in {token.source}"


def in_our_words(
    exc: CycloptsError,
    commands: Iterable[str] = (),
    expected: Expected = lambda _argument: None,
) -> ConfigurationError:
    """Turn an error of cyclopts into one line in the voice of all others.

    commands: those that a mistyped word may mean. expected: what an argument takes, if that is known.
    """
    if isinstance(exc, UnknownOptionError):
        known = [name for each in exc.argument_collection if each.parse for name in each.names]
        return unknown("option", exc.token.keyword or exc.token.value, known)
    if isinstance(exc, UnknownCommandError | UnusedCliTokensError):
        return _about_word((exc.unused_tokens or [""])[0], list(commands))
    if isinstance(exc, RepeatArgumentError):
        return ConfigurationError(f"more than one value for {exc.token.keyword}: expected one")
    if exc.argument is None:
        return ConfigurationError(str(exc))
    return _about_argument(exc, exc.argument, expected(exc.argument) or _expected_of(exc.argument.hint))


def _about_word(word: str, known: list[str]) -> ConfigurationError:
    if word in known:
        return ConfigurationError(f"the command comes first: triojam {word} …")
    if known:
        return unknown("command", word, known)
    # As netcat takes a port.
    form = ": a server and its port are one word, HOST:PORT" if word.isdecimal() else ""
    return ConfigurationError(f"unexpected word {word!r}{form}")


def _about_argument(exc: CycloptsError, argument: Argument, takes: str) -> ConfigurationError:
    if isinstance(exc, ValidationError):
        token = argument.tokens[0]
        return invalid_value(token.value, origin(argument, token), exc.exception_message)
    if isinstance(exc, CoercionError) and exc.token is not None:
        return invalid_value(exc.token.value, origin(argument, exc.token), takes)
    if isinstance(exc, MissingArgumentError):
        return ConfigurationError(f"no value for {exc.keyword or argument.name}: expected {takes}")
    return ConfigurationError(str(exc))


def _expected_of(hint: object) -> str:
    """Say what a type takes."""
    inner = [each for each in get_args(hint) if each not in (type(None), Ellipsis)]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if len(inner) == 1:
        return _expected_of(inner[0])
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(cast(type, hint), "a value")
