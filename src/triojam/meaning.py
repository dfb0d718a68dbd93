"""What the settings mean to each part of the server."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from triojam import certificates, passwords
from triojam.admission import Policy, parse_networks
from triojam.certificates import Contexts
from triojam.deadlines import Timeouts
from triojam.protocol import Rules
from triojam.settings import Settings


class Files(NamedTuple):
    """What stands in the files that the settings name; hashes: of each user's password."""

    contexts: Contexts
    hashes: Mapping[bytes, bytes]


def load_files(settings: Settings) -> Files:
    """Read them. Raises SettingError."""
    contexts = certificates.load(
        certificate=settings.tls_certificate,
        key=settings.tls_key,
        client_ca=settings.tls_client_ca,
        time=settings.tls_port is not None,
        web=settings.metrics_tls and settings.metrics_port is not None,
    )
    return Files(contexts, passwords.load(settings.metrics_passwords))


def make_rules(settings: Settings) -> Rules:
    """Return what the settings let a connection do."""
    return Rules(
        max_line_bytes=settings.max_line_bytes,
        error_budget=settings.error_budget,
        reply_to_rejected=settings.on_reject == "reply",
    )


def make_policy(settings: Settings) -> Policy:
    """Return whom the settings let in, and with how much."""
    return Policy(
        allow=parse_networks(settings.allow),
        deny=parse_networks(settings.deny),
        connections_per_source=settings.connections_per_source,
        rate_per_source=settings.rate_per_source,
        burst_per_source=settings.burst_per_source,
    )


def make_timeouts(settings: Settings) -> Timeouts:
    """Return how long the settings let a client take; there, 0 is none."""
    return Timeouts(
        idle=settings.idle_timeout or math.inf,
        line=settings.line_timeout or math.inf,
        send=settings.send_timeout or math.inf,
    )
