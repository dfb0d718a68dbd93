"""What the log says about the start, a reload and the certificate in force."""

from collections.abc import Callable, Sequence
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger

from triojam.core.addresses import describe_ports, format_address, reachable
from triojam.settings.certificates import DAY, Certificate
from triojam.settings.files import Files

Addresses = Sequence[tuple[str, int]]


def announce_start(  # noqa: PLR0913  # each is a field of the event
    log: FilteringBoundLogger,
    *,
    time: Addresses,
    tls: Addresses,
    metrics: Addresses,
    files: Files,
    connections_limit: int,
    version: str,
) -> None:
    """Log that the server serves. time, tls, metrics: the addresses of the listeners."""
    said = f"triojam {version}: serving on {describe_ports(time)}"
    if tls:
        said += f", over TLS on {describe_ports(tls)}"
    if metrics:
        scheme = "http" if files.contexts.web is None else "https"
        said += f"; metrics and live page at {scheme}://{format_address(reachable(metrics[0]))}/"
    log.info(
        "serving",
        addresses=[format_address(address) for address in time],
        tls=[format_address(address) for address in tls],
        metrics=[format_address(address) for address in metrics],
        connections_limit=connections_limit,
        version=version,
        **(_fields(files.certificate) if any(files.contexts) else {}),
        sentence=f"{said}{_clause(files)} — Ctrl-C to stop",
    )


def announce_reload(
    log: FilteringBoundLogger,
    changed: Sequence[str],
    need_restart: Sequence[str],
    files: Files,
    connections_limit: int,
) -> None:
    """Log what a reload has changed, and what it has not."""
    said = f"settings reloaded; changed: {', '.join(changed) or 'nothing'}"
    if need_restart:
        said += f"; needs a restart: {', '.join(need_restart)}"
    log.info(
        "settings reloaded",
        changed=changed,
        need_restart=need_restart,
        connections_limit=connections_limit,
        **(_fields(files.certificate) if any(files.contexts) else {}),
        sentence=said + _clause(files),
    )


def warn_of_certificates(files: Files, now: float, log: FilteringBoundLogger) -> None:
    """Log what is wrong with the certificates. now: in seconds since the epoch."""
    for event, sentence, certificate in files.concerns(now):
        fields = _fields(certificate)
        if certificate is not None:
            fields["days_left"] = certificate.days_left(now)
            if certificate.ends_first:
                fields["ends_first"] = certificate.ends_first
        log.warning(event, **fields, sentence=sentence)


async def watch_certificates(look: Callable[[], None]) -> None:
    """Look at the certificates once a day, beside the looks at the start and at a reload."""
    while True:
        await trio.sleep(DAY)
        look()


def _fields(certificate: Certificate | None) -> dict[str, Any]:
    """Return the fields that say which certificate an event is about. None: what it says cannot be read."""
    return {
        "certificate": certificate and certificate.name,
        "certificate_fingerprint": certificate and certificate.fingerprint,
        "certificate_ends": certificate and certificate.ends,
    }


def _clause(files: Files) -> str:
    if files.certificate is None:
        return ""
    return f"; certificate for {files.certificate.name} until {files.certificate.ends}"
