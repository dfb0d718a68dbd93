"""The server's side of the command line: one command each, no logic."""

import os
import sys
import time
from dataclasses import fields
from typing import Annotated

from cyclopts import App, Group, Parameter
from cyclopts.config import Env

from triojam.cli import client, lab
from triojam.cli.common import unwrapped
from triojam.cli.console import Console
from triojam.cli.invocation import NO_FLAGS, FlagsParameter, Invocation
from triojam.cli.servers import FAILED
from triojam.errors import all_of
from triojam.settings.certificates import Concern
from triojam.settings.fields import SettingError, Settings
from triojam.settings.sources import PREFIX
from triojam.version import __version__

HELP = """\
A time server: TIME in, JAM hh:mm:ss out, every request accounted for.

Plain `triojam` serves, like `triojam serve`; Ctrl-C stops it. Each flag below is also an environment variable
and a key of the file that --config names. Durations are in seconds.
"""
# A health check waits this long for a reply.
HEALTH_SECONDS = 5.0
CONFIG_HELP = "TOML file with settings; SIGHUP reads it again."


def make_app() -> App:
    """Make the application that parses a command line and runs its command, which returns the exit status."""
    app = App(
        name="triojam",
        help=unwrapped(HELP),
        usage="Usage: triojam [COMMAND] [OPTIONS]",
        help_format="plaintext",
        console=Console(),
        version=__version__,
        config=Env(PREFIX, command=False),  # for --help; an invocation adds the file
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
        group_commands=Group("Commands", sort_key=-1),
    )

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[str | None, Parameter(help=CONFIG_HELP)] = None,
    ) -> int | None:
        """Parse the rest, now that the file is known."""
        invocation = Invocation(app, tokens, config, os.environ)
        command, bound, wanted = invocation.command()
        return command(*bound.args, **bound.kwargs, **dict.fromkeys(wanted, invocation))

    @app.default
    @app.command(sort_key=0)
    def serve(
        flags: FlagsParameter = NO_FLAGS,  # noqa: ARG001  # the invocation reads them, to know their origin
        *,
        invocation: Annotated[Invocation, Parameter(parse=False)],
    ) -> int:
        """Serve the time until SIGTERM or Ctrl-C."""
        from triojam.daemon import run  # noqa: PLC0415  # --help does without Trio and all the rest

        try:
            return run(invocation.read().settings, reread=lambda: invocation.read_again().settings)
        except SettingError as exc:
            raise invocation.blame(exc) from exc

    @app.command(sort_key=1)
    def check(
        flags: FlagsParameter = NO_FLAGS,  # noqa: ARG001  # the invocation reads them, to know their origin
        *,
        invocation: Annotated[Invocation, Parameter(parse=False)],
    ) -> int:
        """Validate the settings, and print each with where it came from."""
        from triojam.process.sockets import find_unusable_hosts  # noqa: PLC0415  # as above
        from triojam.settings.files import load_files  # noqa: PLC0415  # as above

        reading = invocation.read()
        found = find_unusable_hosts(reading.settings)
        concerns: list[Concern] = []
        try:
            concerns = load_files(reading.settings).concerns(time.time())
        except SettingError as exc:
            found.append(exc)
        if found:
            raise all_of([invocation.blame(each) for each in found])
        for concern in concerns:  # the server serves nevertheless
            print(f"triojam: warning: {concern.sentence}", file=sys.stderr)
        rows = [
            (
                each.name,
                _shown(getattr(reading.settings, each.name)),
                reading.origins.get(each.name, "default"),
            )
            for each in fields(Settings)
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for name, value, where in rows:
            print(f"{name:{widths[0]}}  {value:{widths[1]}}  {where}")
        return 0

    @app.command(sort_key=2)
    def health(
        flags: FlagsParameter = NO_FLAGS,  # noqa: ARG001  # the invocation reads them, to know their origin
        *,
        invocation: Annotated[Invocation, Parameter(parse=False)],
    ) -> int:
        """Ask the server of this machine that has these settings, for a health check.

        Exit status: 0 if the server replies on its time port, also that it is full; 1 if not.
        """
        return _ask_for_health(invocation)

    # So that --help lists them, and a mistyped word is led to them.
    client.register(app)
    lab.register(app)
    return app.meta


def _ask_for_health(invocation: Invocation) -> int:
    """Ask, print the result, and return the exit status."""
    from triojam.client.health import ask_for_health  # noqa: PLC0415  # as above

    settings = invocation.read().settings
    if not settings.port:
        raise invocation.blame(SettingError("port", settings.port, "a port from 1 to 65535, to ask there"))
    found = ask_for_health(
        settings.host,
        settings.port,
        allow=settings.allow,
        deny=settings.deny,
        proxies=settings.proxies,
        patience=HEALTH_SECONDS,
    )
    print(found.said, file=sys.stdout if found.healthy else sys.stderr)
    return 0 if found.healthy else FAILED


def _shown(value: object) -> str:
    """Render a value as it may be given, in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "none" if value is None else str(value)
    return (text if text.isprintable() else " ".join(text.split())) or '""'
