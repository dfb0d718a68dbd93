"""One command line of a server: parsed by cyclopts, with the other sources of settings under it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from inspect import BoundArguments
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter, Token
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.config import Dict, Env

from triojam.cli.common import check_whole_numbers, in_our_words, origin
from triojam.errors import ConfigurationError, invalid_value
from triojam.settings.fields import GROUPS, SettingError, Settings
from triojam.settings.sources import (
    CONFIG_VARIABLE,
    FIELDS,
    HINTS,
    PREFIX,
    check_variables,
    read_settings_file,
)


def _make_flags() -> type:
    groups = {name: Group(name, sort_key=place) for place, name in enumerate(GROUPS)}
    described = [
        (
            each.name,
            Annotated[
                HINTS[each.name],
                Parameter(
                    help=f"{each.metadata['help']} Takes {each.metadata['takes']}.",
                    group=groups[each.metadata["group"]],
                ),
            ],
            each.default,
        )
        for each in fields(Settings)
    ]
    # Without the namespace the class seems to come from the standard library's `types`, which cyclopts leaves
    # alone.
    return make_dataclass("Flags", described, kw_only=True, namespace={"__module__": __name__})


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
    _given: dict[str, tuple[str, Token]] = field(default_factory=dict)

    def command(self) -> tuple[Callable[..., int], BoundArguments, Iterable[str]]:
        """Return the command that is meant, its arguments, and the parameters it wants from its caller.

        Raises ConfigurationError.
        """
        check_variables(self.environ)
        self.app.config = [
            Env(PREFIX, command=False),
            *self._file_source(),
            self._remember,
        ]
        try:
            return self.app.parse_args(self.tokens, exit_on_error=False, print_error=False)
        except CycloptsError as exc:
            commands = [name for name in self.app if not name.startswith("-")]
            raise in_our_words(exc, commands, _expected) from exc

    def read(self) -> Reading:
        """Read the settings from all sources, anew. Raises ConfigurationError."""
        _, bound, _ = self.command()
        flags = bound.arguments.get("flags", NO_FLAGS)
        origins = {name: where for name, (where, _) in self._given.items()}
        try:
            return Reading(Settings(**vars(flags)), origins)
        except SettingError as exc:
            raise self.blame(exc) from exc

    def blame(self, exc: SettingError) -> ConfigurationError:
        """Turn an error about a setting into one that says where its value came from."""
        if exc.name not in self._given:
            return invalid_value(exc.value, exc.name, exc.takes)
        where, token = self._given[exc.name]
        return invalid_value(token.value, where, exc.takes)

    def _remember(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Note where each setting comes from: a source for cyclopts that adds nothing."""
        self._given = {
            each.field_info.name: (origin(each, each.tokens[-1]), each.tokens[-1])
            for each in arguments
            if each.tokens
        }
        check_whole_numbers(app, commands, arguments, _expected)

    def _file_source(self) -> list[Dict]:
        if self.file is None:
            return []
        named_by = CONFIG_VARIABLE if self.file == self.environ.get(CONFIG_VARIABLE) else "--config"
        data = read_settings_file(self.file, named_by)
        return [Dict(data, source=self.file, use_commands_as_keys=False)]


def _expected(argument: Argument) -> str | None:
    each = FIELDS.get(argument.field_info.name)
    return each.metadata["takes"] if each is not None else None
