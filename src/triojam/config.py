"""Reads the settings: a flag over an environment variable over the file over the default.

cyclopts does the reading and converting. What it cannot know is done here: that a variable with our
prefix must be a setting, and that an error is one line, which names the culprit and says what it takes.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from inspect import BoundArguments
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict, Env
from cyclopts.exceptions import CoercionError, UnknownOptionError, UnusedCliTokensError

from triojam.errors import ConfigurationError
from triojam.settings import SettingError, Settings

PREFIX = "TRIOJAM_"
CONFIG_VARIABLE = "TRIOJAM_CONFIG"

# What is larger is no settings file, but a mistake, or a device without end.
LONGEST_FILE = 1024 * 1024

NONE = "none"
# Whole numbers of TOML have 64 bits (TOML 1.0, "Integer"); Python's parser takes any.
_INTEGER_LIMIT = 2**63

_FIELDS = {each.name: each for each in fields(Settings)}
_HINTS = get_type_hints(Settings)
_LISTS = {"allow", "deny"}  # which may be arrays in the file
_WHOLE = (int, int | None)
_WHOLE_NUMBER = re.compile(rf"[+-]?\d+|{NONE}", re.IGNORECASE | re.ASCII)


def _make_flags() -> type:
    return make_dataclass(
        "Flags",
        [
            (each.name, Annotated[_HINTS[each.name], Parameter(help=each.metadata["help"])], each.default)
            for each in fields(Settings)
        ],
        kw_only=True,
        # Without it the class seems to come from the standard library's `types`, which cyclopts leaves alone.
        namespace={"__module__": __name__},
    )


# Every setting as cyclopts wants it, without the checks of Settings: those need to know the origin.
Flags = _make_flags()
FlagsParameter = Annotated[Flags, Parameter(name="*")]  # type: ignore[valid-type]  # made at run time
NO_FLAGS = Flags()


@dataclass(frozen=True)
class Reading:
    """Settings, and where each came from that is not a default: a flag, a variable or the file."""

    settings: Settings
    origins: Mapping[str, str]


@dataclass
class Invocation:
    """One command line, which can be read again.

    app: has the commands. tokens: the words of the command line. file: the settings file, if one is named.
    """

    app: App
    tokens: Sequence[str]
    file: str | None
    environ: Mapping[str, str]
    _given: dict[str, Token] = field(default_factory=dict)

    def command(self) -> tuple[Callable[..., int], BoundArguments, Iterable[str]]:
        """Return the command that is meant, its arguments, and the parameters it wants from its caller.

        Raises ConfigurationError.
        """
        known = [*(PREFIX + name.upper() for name in _FIELDS), CONFIG_VARIABLE]
        for variable in sorted(self.environ):
            if variable.startswith(PREFIX) and variable not in known:
                raise ConfigurationError(f"{variable}: no such setting{_suggestion(variable, known)}")
        self.app.config = [
            Env(PREFIX, command=False),
            *self._file_source(),
            self._remember,
        ]
        try:
            return self.app.parse_args(self.tokens, exit_on_error=False, print_error=False)
        except CoercionError as exc:
            raise _wrong_type(exc) from exc
        except UnusedCliTokensError as exc:
            word = (exc.unused_tokens or [""])[0]
            commands = [name for name in self.app if not name.startswith("-")]
            raise ConfigurationError(f"{word!r}: no such command{_suggestion(word, commands)}") from exc
        except UnknownOptionError as exc:
            word = exc.token.keyword or exc.token.value
            flags = ["--" + name.replace("_", "-") for name in _FIELDS]
            raise ConfigurationError(f"{word}: no such flag{_suggestion(word, flags)}") from exc
        except CycloptsError as exc:
            name = exc.argument.field_info.name if exc.argument is not None else ""
            takes = f" It takes {_FIELDS[name].metadata['takes']}." if name in _FIELDS else ""
            raise ConfigurationError(f"{exc}{takes}") from exc

    def read(self) -> Reading:
        """Read the settings from all sources, anew. Raises ConfigurationError."""
        _, bound, _ = self.command()
        flags = bound.arguments.get("flags", NO_FLAGS)
        origins = {name: _origin(name, token) for name, token in self._given.items()}
        try:
            return Reading(Settings(**vars(flags)), origins)
        except SettingError as exc:
            raise self.blame(exc) from exc

    def blame(self, exc: SettingError) -> ConfigurationError:
        """Turn an error about a setting into one that says where its value came from."""
        token = self._given.get(exc.name)
        return _unusable(_origin(exc.name, token) if token else exc.name, exc.value, exc.takes)

    def _remember(self, _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Note which settings are given, and by whom: a source for cyclopts that adds nothing."""
        self._given = {
            argument.field_info.name: argument.tokens[-1] for argument in arguments if argument.tokens
        }
        for name, token in self._given.items():
            # cyclopts takes 1.5 for a whole number, and rounds it.
            if _HINTS.get(name) in _WHOLE and not _WHOLE_NUMBER.fullmatch(token.value):
                raise _unusable(_origin(name, token), token.value, _FIELDS[name].metadata["takes"])

    def _file_source(self) -> list[Dict]:
        if self.file is None:
            return []
        named_by = CONFIG_VARIABLE if self.file == self.environ.get(CONFIG_VARIABLE) else "--config"
        try:
            with open(self.file, "rb") as file:  # noqa: PTH123  # Path("") would be the folder we are in
                content = file.read(LONGEST_FILE + 1)
        except OSError as exc:
            raise ConfigurationError(f"{named_by} {self.file!r}: {exc.strerror or exc}") from exc
        if len(content) > LONGEST_FILE:
            raise ConfigurationError(f"{named_by} {self.file!r}: longer than {LONGEST_FILE} bytes")
        try:
            data = tomllib.loads(content.decode())
        except (ValueError, RecursionError) as exc:  # no UTF-8, no TOML, too many digits, or too deep
            raise ConfigurationError(f"{named_by} {self.file!r}: not a TOML file: {exc}") from exc
        for key in _LISTS & data.keys():
            if isinstance(data[key], list) and all(isinstance(each, str) for each in data[key]):
                data[key] = ",".join(data[key])
        for key, value in data.items():  # all of them, also those that a flag or variable overrides
            if key not in _FIELDS:
                raise ConfigurationError(f"{key} in {self.file}: no such setting{_suggestion(key, _FIELDS)}")
            metadata = _FIELDS[key].metadata
            plain = None if value == NONE and _HINTS[key] == int | None else value
            if not (_is_of_type(plain, _HINTS[key]) and metadata["valid"](plain)):
                raise _unusable(f"{key} in {self.file}", value, metadata["takes"])
        return [Dict(data, source=self.file, use_commands_as_keys=False)]


def _is_of_type(value: object, hint: Any) -> bool:
    """Whether a TOML value is of the type that a setting has; a whole number is a duration, too."""
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
        return False
    return isinstance(value, int | float if hint is float else hint)


def _origin(name: str, token: Token) -> str:
    if token.source in ("cli", "env"):
        return token.keyword or name
    return f"{name} in {token.source}"


def _wrong_type(exc: CoercionError) -> ConfigurationError:
    if exc.argument is None or exc.token is None:
        return ConfigurationError(str(exc))
    name = exc.argument.field_info.name
    return _unusable(_origin(name, exc.token), exc.token.value, _FIELDS[name].metadata["takes"])


def _unusable(origin: str, value: object, takes: str) -> ConfigurationError:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes, or tables in each other
        shown = f"such a {type(value).__name__}"
    return ConfigurationError(f"{origin}: {shown} is not what it takes: {takes}")


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; triojam --help lists them"
