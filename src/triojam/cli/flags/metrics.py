"""What --metrics and the flags beside it say: which servers to read, and what they want before."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from triojam.cli.servers import parsed
from triojam.errors import ConfigurationError, invalid_value

if TYPE_CHECKING:  # imported when the command runs
    import ssl

    from triojam.load.readings import Access

VARIABLE = "TRIOJAM_METRICS_PASSWORD"


def metrics_urls(words: Sequence[str]) -> list[str]:
    """Return the URLs that --metrics names. No error shows a password."""
    from triojam.load.readings import metrics_url  # noqa: PLC0415  # see above

    for word in words:
        if "@" in word:
            raise ConfigurationError(
                "invalid value for --metrics: expected a URL without user and password:"
                f" give them by --metrics-user and --metrics-password-file, or {VARIABLE}"
            )
    urls = [parsed("--metrics", metrics_url, each) for each in words]
    if len(set(urls)) < len(urls):
        raise invalid_value(", ".join(words), "--metrics", "each server only once")
    return urls


def access_of(
    urls: Sequence[str],
    *,
    user: str | None = None,
    password_file: Path | None = None,
    ca: Path | None = None,
) -> "Access":
    """Read what --metrics-user, --metrics-password-file and --metrics-ca name. urls: those of --metrics."""
    from triojam.load.readings import Access  # noqa: PLC0415  # see above

    given = {"--metrics-user": user, "--metrics-password-file": password_file, "--metrics-ca": ca}
    for option, value in given.items():
        if value is not None and not urls:
            raise ConfigurationError(f"{option} needs --metrics")
    if user is not None and (not user or not user.isprintable() or ":" in user):
        raise invalid_value(user, "--metrics-user", "a name without a colon")
    if user is None and password_file is not None:
        raise ConfigurationError("--metrics-password-file needs --metrics-user")
    secured = any(each.startswith("https:") for each in urls)
    if ca is not None and not secured:
        raise ConfigurationError("--metrics-ca needs a URL with https in --metrics")
    return Access(
        user,
        _password(password_file) if user is not None else "",
        _trusting(ca) if secured else None,
    )


def _password(file: Path | None) -> str:
    if file is None:
        if password := os.environ.get(VARIABLE):
            return password
        raise ConfigurationError(
            f"--metrics-user needs a password, in --metrics-password-file or the variable {VARIABLE}"
        )
    from triojam.settings.reading import read_bounded  # noqa: PLC0415  # see above

    expected = "a file whose only line is the password"
    try:
        # A pipe is good, too: a shell makes one of the output of a password manager.
        content = read_bounded(str(file), any_kind=True).decode("utf-8", "surrogateescape")
    except (OSError, ValueError) as exc:
        reason = (isinstance(exc, OSError) and exc.strerror) or str(exc)
        raise invalid_value(str(file), "--metrics-password-file", f"{expected} ({reason.lower()})") from exc
    password = content.removesuffix("\n").removesuffix("\r")
    if not password or "\n" in password:
        number = "no password" if not password else "more than one line"
        raise invalid_value(str(file), "--metrics-password-file", f"{expected} ({number})")
    return password


def _trusting(ca: Path | None) -> "ssl.SSLContext":
    """Make the context that trusts the certificates of a file; None = those of the system."""
    import ssl  # noqa: PLC0415  # see above

    from triojam.settings.files import new_context  # noqa: PLC0415  # see above
    from triojam.settings.reading import read_bounded  # noqa: PLC0415  # see above

    if ca is None:
        return new_context(ssl.Purpose.SERVER_AUTH)
    expected = "a PEM file of CA certificates"
    try:
        trusted = read_bounded(str(ca)).decode("ascii")
    except (OSError, ValueError) as exc:
        reason = (isinstance(exc, OSError) and exc.strerror) or str(exc)
        raise invalid_value(str(ca), "--metrics-ca", f"{expected} ({reason.lower()})") from exc
    try:
        # For an empty text, Python would trust the system's certificates.
        return new_context(ssl.Purpose.SERVER_AUTH, trusted or "\n")
    except ssl.SSLError as exc:
        raise invalid_value(str(ca), "--metrics-ca", expected) from exc
