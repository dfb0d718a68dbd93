"""One command line of a server: parsed by cyclopts, with the other sources of settings under it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from inspect import BoundArguments
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter, Token
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.config import Dict, Env

from triojam.cli.common import check_whole_numbers, in_our_words, origin
from triojam.errors import ConfigurationError, all_of, invalid_value
from triojam.settings.fields import FIELDS, GROUPS, HINTS, SettingError, Settings, problems, wrong_value
from triojam.settings.sources import (
    CONFIG_VARIABLE,
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
    _flags: object = field(default_factory=Flags)
    _was_read: bool = False

    def command(self) -> tuple[Callable[..., int], BoundArguments, Iterable[str]]:
        """Return the command that is meant, its arguments, and the parameters it wants from its caller.

        Reads all sources. Raises ConfigurationError.
        """
        check_variables(self.environ)
        self.app.config = [
            Env(PREFIX, command=False),
            *self._file_source(),
            self._remember,
        ]
        self._was_read = True
        try:
            command, bound, wanted = self.app.parse_args(self.tokens, exit_on_error=False, print_error=False)
        except CycloptsError as exc:
            commands = [name for name in self.app if not name.startswith("-")]
            raise in_our_words(exc, commands, _expected) from exc
        self._flags = bound.arguments.get("flags", NO_FLAGS)
        return command, bound, wanted

    def read(self) -> Reading:
        """Return the settings as `command` has found them. Raises ConfigurationError."""
        values = vars(self._flags)
        if found := [self.blame(each) for each in problems(values)]:
            raise all_of(found)
        origins = {name: where for name, (where, _) in self._given.items()}
        return Reading(Settings(**values), origins)

    def read_again(self) -> Reading:
        """Read the settings from all sources, anew. Raises ConfigurationError."""
        self.command()
        return self.read()

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
        data = read_settings_file(self.file, named_by, again=self._was_read)
        return [Dict(data, source=self.file, use_commands_as_keys=False)]


def _expected(argument: Argument) -> str | None:
    """Return what a setting takes, with a hint at what the value may mean."""
    name = argument.field_info.name
    if name not in FIELDS:
        return None
    return wrong_value(name, argument.tokens[-1].value if argument.tokens else "").takes
