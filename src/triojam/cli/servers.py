"""What the commands that connect to servers have in common: their arguments, and how they run."""

from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Group, Parameter

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
TERMINATED = 143

TLS = Group("TLS")  # of options in --help
FLAG = Parameter(negative="", show_default=False)

Servers = Annotated[str, Parameter(help="HOST or HOST:PORT; without any, port 45000 of this machine.")]
Timeout = Annotated[float, Positive, Parameter(help="Seconds to wait for a connection, and for an answer.")]
Tls = Annotated[bool, FLAG, Parameter(group=TLS, help="Ask over TLS; the options below imply it.")]
Ca = Annotated[
    Path | None, Parameter(group=TLS, help="File with CA certificates (PEM) to trust, and no others.")
]
Cert = Annotated[
    Path | None, Parameter(group=TLS, help="File with a client certificate (PEM), and perhaps its key.")
]
Key = Annotated[Path | None, Parameter(group=TLS, help="File with the key of --cert (PEM).")]
ServerName = Annotated[str | None, Parameter(group=TLS, help="Name in the certificate, if it is not HOST.")]
Zone = Annotated[str, Parameter(help="Time zone of the answers: an IANA name, or system for this machine's.")]


def run(main: Callable[[], Awaitable[None]], interrupt: Callable[[], bool] = lambda: False) -> int:
    """Run until it is done, or a signal ends it; return the exit status of the signal, or 0.

    interrupt: is called at Ctrl-C and at SIGTERM, and tells whether `main` is about to end by itself.
    """
    from triojam.process import signals  # noqa: PLC0415  # see above

    status = 0

    def heed(signum: int, scope: "trio.CancelScope") -> None:
        nonlocal status
        status = 128 + signum
        if not interrupt():
            scope.cancel()

    signals.run(main, heed, signals.STOP, ignore_afterwards=False)
    return status


def targets_of(servers: tuple[str, ...]) -> "list[Target]":
    """Parse the words that name servers; without any, this machine."""
    for host, word in pairwise(servers):
        if word.isdecimal() and not host.isdecimal():  # as netcat takes it
            meant = f"[{host}]:{word}" if ":" in host else f"{host}:{word}"
            raise invalid_value(word, "SERVERS", f"HOST or HOST:PORT: did you mean {meant}?")
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


def tls_of(
    *,
    tls: bool,
    ca: Path | None,
    cert: Path | None = None,
    key: Path | None = None,
    name: str | None = None,
) -> "ssl.SSLContext | None":
    """Make the context for --tls, --ca, --cert and --key; None = plain TCP. name: that of --server-name."""
    import ssl  # noqa: PLC0415  # see above

    from triojam.settings.files import new_context  # noqa: PLC0415  # see above
    from triojam.settings.reading import read_bounded  # noqa: PLC0415  # see above

    if key is not None and cert is None:
        raise ConfigurationError("--key needs --cert")
    if not tls and ca is None and cert is None and name is None:
        return None
    try:
        # For an empty text, Python would trust the certificates of the system.
        trusted = (read_bounded(str(ca)).decode("ascii") or "\n") if ca is not None else None
        context = new_context(ssl.Purpose.SERVER_AUTH, trusted)
    except (OSError, ValueError) as exc:
        if isinstance(exc, ConfigurationError):
            raise
        reason = ""
        if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError):
            reason = f" ({(exc.strerror or str(exc)).lower()})"
        raise invalid_value(str(ca), "--ca", f"a PEM file of certificates{reason}") from exc
    if cert is not None:
        _load_identity(context, cert, key)
    if name is not None:
        try:
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
        except ValueError as exc:
            raise invalid_value(name, "--server-name", f"a host name ({exc})") from exc
        if not name.isprintable() or " " in name:
            raise invalid_value(name, "--server-name", "a host name without spaces")
    return context


def _load_identity(context: "ssl.SSLContext", cert: Path, key: Path | None) -> None:
    """Load the client's certificate and its key."""
    from triojam.settings.reading import read_bounded  # noqa: PLC0415  # see above

    for option, file in (("--cert", cert), ("--key", key)):
        if file is not None:
            expected = "a PEM file of a certificate" if option == "--cert" else "the PEM file of its key"
            try:
                read_bounded(str(file))
            except (OSError, ValueError) as exc:
                reason = (isinstance(exc, OSError) and exc.strerror) or str(exc)
                raise invalid_value(str(file), option, f"{expected} ({reason.lower()})") from exc

    def refuse() -> str:
        raise ValueError("it has a passphrase")  # OpenSSL itself would ask on the terminal

    try:
        context.load_cert_chain(cert, key, password=refuse)
    except (OSError, ValueError) as exc:
        reason = (getattr(exc, "reason", None) or str(exc)).replace("_", " ").lower()
        if key is not None:
            raise invalid_value(str(key), "--key", f"the PEM file of the key of {cert} ({reason})") from exc
        expected = f"a PEM file of a certificate and its key, or --key ({reason})"
        raise invalid_value(str(cert), "--cert", expected) from exc
