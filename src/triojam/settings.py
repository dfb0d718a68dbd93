"""Every setting, once: flags, variables, file keys, `--help` and the README's table come from here."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from zoneinfo import ZoneInfo

from triojam.admission import parse_networks
from triojam.errors import ConfigurationError


class SettingError(ConfigurationError):
    """A setting has a value it does not take.

    name, value: of the setting. takes: what it takes, in words.
    """

    def __init__(self, name: str, value: object, takes: str) -> None:
        super().__init__(f"{name}={value!r}: takes {takes}")
        self.name = name
        self.value = value
        self.takes = takes


def _setting(
    default: Any, text: str, takes: str, valid: Callable[[Any], bool], *, reloads: bool = False
) -> Any:
    """Describe one setting: its default, what it does, what it takes, and whether SIGHUP applies it."""
    metadata = {"help": text, "takes": takes, "valid": valid, "reloads": reloads}
    return field(default=default, metadata=metadata)


def _is_text(value: str) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_host(value: str) -> bool:
    # Found here, and not only when the service starts. IPv6 has colons, and its zones a %.
    return value == "*" or re.fullmatch(r"[\w.:%-]+", value) is not None


def _is_port(value: int) -> bool:
    return 0 <= value <= 65535


def _is_duration(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _is_zone(value: str) -> bool:
    if value == "system":
        return True
    try:
        ZoneInfo.no_cache(value)
    except (ValueError, OSError, LookupError):  # no such zone, a path outside, or a file that is no zone
        return False
    return True


def _are_networks(value: str) -> bool:
    try:
        parse_networks(value)
    except ValueError:
        return False
    return True


ADDRESS = "an IP address or host name of this machine, or *"
PORT = "a port from 0 (any free one) to 65535"
SECONDS = "seconds, 0 or more"
OR_NONE = "0 for none"
PASSWORDS = "a file of user:hash lines with bcrypt hashes of cost 4 to 14; empty for no passwords"
NETWORKS = "networks such as 192.0.2.0/24 or 2001:db8::/32, separated by commas"
OTHER_NETWORKS = f"{NETWORKS}; none that is in allow as well"
CERTIFICATE = "a PEM file with the server's certificate, then those between it and the root"
KEY = "a PEM file with the certificate's key, no passphrase; empty if it stands in the certificate's file"
CLIENT_CA = "a PEM file with certificates; empty if clients need none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve. Durations are in seconds. Raises SettingError for a value that is not taken."""

    host: str = _setting(
        "*",
        "Address of the time service; * is every interface, IPv4 and IPv6.",
        ADDRESS,
        _is_host,
    )
    port: int = _setting(45000, "TCP port of the time service.", PORT, _is_port)
    metrics_host: str = _setting(
        "127.0.0.1",
        "Address of the metrics listener; * is every interface.",
        ADDRESS,
        _is_host,
    )
    metrics_port: int | None = _setting(
        45001,
        "TCP port of the metrics listener; none turns it off.",
        f"{PORT}, or none",
        lambda value: value is None or _is_port(value),
    )
    tls_port: int | None = _setting(
        None,
        "TCP port of the time service over TLS; none turns it off.",
        f"{PORT}, or none",
        lambda value: value is None or _is_port(value),
    )
    tls_certificate: str = _setting(
        "", "The certificate of both TLS listeners.", CERTIFICATE, _is_text, reloads=True
    )
    tls_key: str = _setting("", "The private key of the certificate.", KEY, _is_text, reloads=True)
    tls_client_ca: str = _setting(
        "",
        "Who must have signed the certificate that a client of the TLS port must then present.",
        CLIENT_CA,
        _is_text,
        reloads=True,
    )
    metrics_tls: bool = _setting(
        False,  # noqa: FBT003  # a default like the others
        "The metrics listener speaks TLS, and nothing else.",
        "true or false",
        lambda value: isinstance(value, bool),
    )
    metrics_passwords: str = _setting(
        "",
        "File with who may use the metrics listener, such as htpasswd -B makes.",
        PASSWORDS,
        _is_text,
        reloads=True,
    )
    timezone: str = _setting(
        "system",
        "Time zone of the answers, such as Asia/Jakarta.",
        "system or an IANA time zone name",
        _is_zone,
        reloads=True,
    )
    idle_timeout: float = _setting(
        60.0,
        "A connection without a new request is closed after this long.",
        f"{SECONDS}; {OR_NONE}",
        _is_duration,
        reloads=True,
    )
    line_timeout: float = _setting(
        10.0,
        "A line may take this long from its first byte to its end.",
        f"{SECONDS}; {OR_NONE}",
        _is_duration,
        reloads=True,
    )
    send_timeout: float = _setting(
        10.0,
        "A client may take this long to take its answers.",
        f"{SECONDS}; {OR_NONE}",
        _is_duration,
        reloads=True,
    )
    max_line_bytes: int = _setting(
        512,
        "The longest line, CR LF included.",
        f"bytes, 6 or more; {OR_NONE}",
        lambda value: value == 0 or value >= 6,
        reloads=True,
    )
    max_connections: int = _setting(
        10_000,
        "Connections open at once; never more than the file descriptor limit less 64.",
        f"a whole number, 0 or more; {OR_NONE}",
        lambda value: value >= 0,
        reloads=True,
    )
    allow: str = _setting(
        "",
        "Networks that may connect, and no others; the longest of allow and deny that fits decides.",
        NETWORKS,
        _are_networks,
        reloads=True,
    )
    deny: str = _setting(
        "",
        "Networks that may not connect: closed without a word.",
        OTHER_NETWORKS,
        _are_networks,
        reloads=True,
    )
    connections_per_source: int = _setting(
        0,
        "Connections open at once from one IPv4 address or IPv6 /64.",
        f"a whole number, 0 or more; {OR_NONE}",
        lambda value: value >= 0,
        reloads=True,
    )
    rate_per_source: float = _setting(
        0.0,
        "Requests a second from one IPv4 address or IPv6 /64, in the long run.",
        f"a number, 0 or more; {OR_NONE}",
        _is_duration,
        reloads=True,
    )
    burst_per_source: int = _setting(
        20,
        "Requests from one source that may come at once before rate_per_source limits them.",
        "a whole number, 1 or more",
        lambda value: value >= 1,
        reloads=True,
    )
    error_budget: int = _setting(
        10,
        "Rejected lines after which a connection is closed; each answered line makes up for one of them.",
        f"a whole number, 0 or more; {OR_NONE}",
        lambda value: value >= 0,
        reloads=True,
    )
    on_reject: Literal["reply", "close"] = _setting(
        "reply",
        "Answer a bad line with an ERROR line, or close the connection without a word.",
        "reply or close",
        lambda value: value in ("reply", "close"),
        reloads=True,
    )
    lame_duck: float = _setting(
        0.0,
        "How long a stopping server, no longer ready, goes on as before.",
        SECONDS,
        _is_duration,
        reloads=True,
    )
    grace: float = _setting(
        5.0,
        "How long a stopping server then waits for its clients.",
        SECONDS,
        _is_duration,
        reloads=True,
    )
    fast_lane: bool = _setting(
        True,  # noqa: FBT003  # a default like the others
        "Serve easy clients without a task each, where the system has epoll.",
        "true or false",
        lambda value: isinstance(value, bool),
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info",
        "The least important log lines to write.",
        "debug, info, warning or error",
        lambda value: value in ("debug", "info", "warning", "error"),
        reloads=True,
    )
    log_format: Literal["auto", "console", "json"] = _setting(
        "auto", "How log lines look; auto is console on a terminal and json otherwise.",
        "auto, console or json", lambda value: value in ("auto", "console", "json"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            try:
                valid = each.metadata["valid"](value)
            except (TypeError, OverflowError):  # of a type that does not even compare, or beyond a float
                valid = False
            if not valid:
                raise SettingError(each.name, value, each.metadata["takes"])
        if not set(parse_networks(self.allow)).isdisjoint(parse_networks(self.deny)):
            raise SettingError("deny", self.deny, OTHER_NETWORKS)
