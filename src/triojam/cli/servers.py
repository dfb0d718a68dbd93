"""What the commands that connect to servers have in common: their arguments, and how they run."""

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter

from triojam.cli.common import Positive
from triojam.errors import ConfigurationError, invalid_value

if TYPE_CHECKING:  # imported when a command runs: --help does without Trio, TLS and rich
    import ssl
    from datetime import tzinfo

    import trio

    from triojam.client.session import Target

Parsed = TypeVar("Parsed")

FAILED = 1
INTERRUPTED = 130

FLAG = Parameter(negative="", show_default=False)

Servers = Annotated[str, Parameter(help="HOST or HOST:PORT; without any, port 45000 of this machine.")]
Timeout = Annotated[float, Positive, Parameter(help="Seconds to wait for a connection, and for an answer.")]
Tls = Annotated[bool, FLAG, Parameter(help="Ask over TLS.")]
Ca = Annotated[Path | None, Parameter(help="File with CA certificates (PEM) to trust, and no others.")]
Zone = Annotated[str, Parameter(help="Time zone of the answers: an IANA name, or system for this machine's.")]


def run(main: Callable[[], Awaitable[None]], interrupt: Callable[[], bool] = lambda: False) -> bool:
    """Run until it is done or interrupted; whether it was interrupted.

    interrupt: is called at Ctrl-C, and tells whether `main` is about to end by itself.
    """
    from triojam.process import signals  # noqa: PLC0415  # see above

    interrupted = False

    def heed(_signum: int, scope: "trio.CancelScope") -> None:
        nonlocal interrupted
        interrupted = True
        if not interrupt():
            scope.cancel()

    signals.run(main, heed, {signal.SIGINT}, ignore_afterwards=False)
    return interrupted


def targets_of(servers: tuple[str, ...]) -> "list[Target]":
    """Parse the words that name servers; without any, this machine."""
    return [target_of("SERVERS", each) for each in servers or ("127.0.0.1",)]


def target_of(name: str, text: str) -> "Target":
    """Parse a word that names a server. name: of the argument."""
    from triojam.client.session import Target  # noqa: PLC0415  # see above

    return parsed(name, Target.parse, text)


def parsed(name: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    """Parse an argument with a function whose ValueError says what is expected."""
    try:
        return parse(text)
    except ValueError as exc:
        raise invalid_value(text, name, str(exc)) from exc


def zone_of(name: str) -> "tzinfo | None":
    """Read the time zone that --timezone names."""
    from triojam.settings.zones import load_zone  # noqa: PLC0415  # see above

    try:
        return load_zone(name)
    except ValueError as exc:
        raise invalid_value(name, "--timezone", f"system or an IANA time zone name ({exc})") from exc


def tls_of(*, tls: bool, ca: Path | None) -> "ssl.SSLContext | None":
    """Make the context for --tls and --ca; None = plain TCP."""
    import ssl  # noqa: PLC0415  # see above

    from triojam.settings.files import new_context  # noqa: PLC0415  # see above
    from triojam.settings.reading import read_bounded  # noqa: PLC0415  # see above

    if not tls and ca is None:
        return None
    try:
        trusted = read_bounded(str(ca)).decode("ascii") if ca is not None else None
        return new_context(ssl.Purpose.SERVER_AUTH, trusted)
    except (OSError, ValueError) as exc:
        if isinstance(exc, ConfigurationError):
            raise
        raise invalid_value(str(ca), "--ca", "a PEM file of certificates") from exc


def check_writable(option: str, file: Path | None) -> None:
    """Find out before the work, rather than after it."""
    if file is None:
        return
    try:
        file.open("ab").close()
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise invalid_value(str(file), option, f"a file that can be written ({reason})") from exc
