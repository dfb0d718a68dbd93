"""Reads the settings: a flag over an environment variable over the file over the default.

cyclopts does the reading and converting. What it cannot know is done here: that a variable with our
prefix must be a setting, and that an error is one line, which names the culprit and says what it takes.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from inspect import BoundArguments
from pathlib import Path
from typing import Annotated, get_type_hints

from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict, Env
from cyclopts.exceptions import CoercionError

from triojam.settings import ConfigurationError, SettingError, Settings

PREFIX = "TRIOJAM_"
CONFIG_VARIABLE = "TRIOJAM_CONFIG"


def _make_flags() -> type:
    hints = get_type_hints(Settings)
    return make_dataclass(
        "Flags",
        [
            (each.name, Annotated[hints[each.name], Parameter(help=each.metadata["help"])], each.default)
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
    file: Path | None
    environ: Mapping[str, str]
    _given: dict[str, Token] = field(default_factory=dict)

    def command(self) -> tuple[Callable[..., int], BoundArguments, Iterable[str]]:
        """Return the command that is meant, its arguments, and the parameters it wants from its caller.

        Raises ConfigurationError.
        """
        known = {PREFIX + each.name.upper() for each in fields(Settings)} | {CONFIG_VARIABLE}
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
        except CycloptsError as exc:
            raise ConfigurationError(str(exc)) from exc

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

    def _file_source(self) -> list[Dict]:
        if self.file is None:
            return []
        try:
            with self.file.open("rb") as file:
                data = tomllib.load(file)
        except OSError as exc:
            raise ConfigurationError(f"--config {self.file}: {exc.strerror or exc}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigurationError(f"--config {self.file}: not a TOML file: {exc}") from exc
        return [Dict(data, source=str(self.file), use_commands_as_keys=False)]


def _origin(name: str, token: Token) -> str:
    if token.source in ("cli", "env"):
        return token.keyword or name
    return f"{name} in {token.source}"


def _wrong_type(exc: CoercionError) -> ConfigurationError:
    if exc.argument is None or exc.token is None:
        return ConfigurationError(str(exc))
    name = exc.argument.field_info.name
    takes = next(each.metadata["takes"] for each in fields(Settings) if each.name == name)
    return _unusable(_origin(name, exc.token), exc.token.value, takes)


def _unusable(origin: str, value: object, takes: str) -> ConfigurationError:
    return ConfigurationError(f"{origin}: {value!r} is not what it takes: {takes}")


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; triojam --help lists them"
