"""What the log says about the start, a reload and the certificate in force."""

from collections.abc import Callable, Sequence
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger

from triojam.core.addresses import describe_ports, format_address, reachable
from triojam.settings.certificates import DAY
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
        **_fields(files),
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
        **_fields(files),
        sentence=said + _clause(files),
    )


def warn_of_certificate(files: Files, now: float, log: FilteringBoundLogger) -> None:
    """Log what is wrong with the certificate, if anything is. now: in seconds since the epoch."""
    if (concern := files.certificate_concern(now)) is None:
        return
    fields = _fields(files)
    if files.certificate is not None:
        fields["days_left"] = files.certificate.days_left(now)
        if files.certificate.ends_first:
            fields["ends_first"] = files.certificate.ends_first
    log.warning(concern.event, **fields, sentence=concern.sentence)


async def watch_certificate(look: Callable[[], None]) -> None:
    """Look at the certificate once a day, beside the looks at the start and at a reload."""
    while True:
        await trio.sleep(DAY)
        look()


def _fields(files: Files) -> dict[str, Any]:
    """Return the fields that say which certificate is in force, if a listener uses TLS."""
    if not any(files.contexts):
        return {}
    if (certificate := files.certificate) is None:
        return {"certificate": None, "certificate_ends": None}
    return {
        "certificate": certificate.name,
        "certificate_fingerprint": certificate.fingerprint,
        "certificate_ends": certificate.ends,
    }


def _clause(files: Files) -> str:
    if files.certificate is None:
        return ""
    return f"; certificate for {files.certificate.name} until {files.certificate.ends}"
