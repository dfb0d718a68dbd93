"""Every setting, once: flags, variables, file keys, `--help` and the table of settings come from here."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from triojam.core.admission import parse_networks
from triojam.errors import ConfigurationError, shown
from triojam.settings.hints import hint
from triojam.settings.zones import load_zone

# The groups of `--help`, in their order.
NETWORK, TLS, LIMITS, TIME, STOPPING, LOGGING = GROUPS = (
    "Network", "TLS and passwords", "Limits", "Time", "Stopping", "Logging",
)  # fmt: skip


class SettingError(ConfigurationError):
    """A setting has a value that it does not take.

    name, value: of the setting. takes: what it takes, in words.
    """

    def __init__(self, name: str, value: object, takes: str) -> None:
        super().__init__(f"invalid value {shown(value)} for {name}: expected {takes}")
        self.name = name
        self.value = value
        self.takes = takes


def _setting(  # noqa: PLR0913  # what there is to say of a setting
    group: str, default: Any, text: str, takes: str, valid: Callable[[Any], bool], *, reloads: bool = False
) -> Any:
    """Describe one setting: its default, what it does, what it takes, and whether SIGHUP applies it."""
    metadata = {"group": group, "help": text, "takes": takes, "valid": valid, "reloads": reloads}
    return field(default=default, metadata=metadata)


def _is_text(value: str) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_host(value: str) -> bool:
    # IPv6 addresses have colons, and their zones a %.
    return value == "*" or re.fullmatch(r"[\w.:%-]+", value) is not None


def _is_port(value: int) -> bool:
    return 0 <= value <= 65535


def _is_duration(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _is_rate(value: float) -> bool:
    # Beyond that, the time from one request to the next is no number that can be counted with.
    return value == 0 or (math.isfinite(value) and value >= LEAST_RATE)


def _is_zone(value: str) -> bool:
    try:
        load_zone(value)
    except ValueError:
        return False
    return True


def _are_networks(value: str) -> bool:
    try:
        parse_networks(value)
    except ValueError:
        return False
    return True


def _are_names(value: str) -> bool:
    return re.fullmatch(r"[\w.\s,-]*", value) is not None


def _is_bool(value: bool) -> bool:  # noqa: FBT001  # the only argument
    return isinstance(value, bool)


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words


def _at_least(least: int, *others: int) -> Callable[[Any], bool]:
    return lambda value: least <= value <= MOST or value in others


def _or_none(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or valid(value)


ADDRESS = "an IP address or host name of this machine, or *"
PORT = "a port from 0 to 65535"
SECONDS = "seconds, 0 or more"
# Nothing that is counted here comes near; a number that no float can hold must not reach an arithmetic.
MOST = 2**53
LEAST_RATE = 1e-6
NUMBER = "a whole number, 0 or more; 0 for no limit"
BOOL = "true or false"
_YES, _NO = True, False
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
        NETWORK, "*", "Address of the time service; * is every interface, IPv4 and IPv6.", ADDRESS, _is_host
    )
    port: int = _setting(NETWORK, 45000, "TCP port of the time service; 0 is any free port.", PORT, _is_port)
    metrics_host: str = _setting(
        NETWORK, "127.0.0.1", "Address of the metrics listener; * is every interface.", ADDRESS, _is_host
    )
    metrics_port: int | None = _setting(
        NETWORK, 45001, "TCP port of the metrics listener; 0 is any free port, none turns it off.",
        f"{PORT}, or none", _or_none(_is_port),
    )  # fmt: skip
    metrics_names: str = _setting(
        NETWORK, "", "Host names, besides this machine's own, under which the metrics listener may be asked.",
        "names separated by commas", _are_names,
    )  # fmt: skip
    tls_port: int | None = _setting(
        NETWORK, None, "TCP port of the time service over TLS; 0 is any free port, none turns it off.",
        f"{PORT}, or none", _or_none(_is_port),
    )  # fmt: skip
    proxies: str = _setting(
        NETWORK, "", "Networks of load balancers: each connection from there begins with a PROXY header.",
        NETWORKS, _are_networks, reloads=True,
    )  # fmt: skip
    tls_certificate: str = _setting(
        TLS, "", "Certificate of both TLS listeners.", CERTIFICATE, _is_text, reloads=True
    )
    tls_key: str = _setting(TLS, "", "Private key of the certificate.", KEY, _is_text, reloads=True)
    tls_client_ca: str = _setting(
        TLS, "",
        "CA certificates. If set, clients of the TLS port must present a certificate signed by one.",
        CLIENT_CA, _is_text, reloads=True,
    )  # fmt: skip
    metrics_tls: bool = _setting(
        TLS, _NO, "Let the metrics listener speak TLS, and nothing else.", BOOL, _is_bool
    )
    metrics_passwords: str = _setting(
        TLS, "", "Users of the metrics listener and their passwords, as written by htpasswd -B.",
        PASSWORDS, _is_text, reloads=True,
    )  # fmt: skip
    timezone: str = _setting(
        TIME, "system", "Time zone of the answers, such as Asia/Jakarta.",
        "system or an IANA time zone name", _is_zone, reloads=True,
    )  # fmt: skip
    idle_timeout: float = _setting(
        TIME, 60.0, "Close a connection after this long without a new request.",
        f"{SECONDS}; 0 for no limit", _is_duration, reloads=True,
    )  # fmt: skip
    line_timeout: float = _setting(
        TIME, 10.0, "Time for a line, from its first byte to its end.",
        f"{SECONDS}; 0 for no limit", _is_duration, reloads=True,
    )  # fmt: skip
    send_timeout: float = _setting(
        TIME, 10.0, "Time for a client to take its answers.",
        f"{SECONDS}; 0 for no limit", _is_duration, reloads=True,
    )  # fmt: skip
    max_line_bytes: int = _setting(
        LIMITS, 512, "The longest line, CR LF included.",
        "bytes, 6 or more; 0 for no limit", _at_least(6, 0), reloads=True,
    )  # fmt: skip
    max_connections: int = _setting(
        LIMITS, 10_000, "Connections open at once; never more than the file descriptor limit less 64.",
        NUMBER, _at_least(0), reloads=True,
    )  # fmt: skip
    allow: str = _setting(
        LIMITS, "", "Networks that may connect, and no others; the longest match in allow and deny decides.",
        NETWORKS, _are_networks, reloads=True,
    )  # fmt: skip
    deny: str = _setting(
        LIMITS, "", "Networks that may not connect: their connections are closed without a reply.",
        OTHER_NETWORKS, _are_networks, reloads=True,
    )  # fmt: skip
    connections_per_source: int = _setting(
        LIMITS, 0, "Connections open at once from one IPv4 address or IPv6 /64.",
        NUMBER, _at_least(0), reloads=True,
    )  # fmt: skip
    rate_per_source: float = _setting(
        LIMITS, 0.0, "Requests a second from one IPv4 address or IPv6 /64, on average.",
        "a number from 0.000001; 0 for no limit", _is_rate, reloads=True,
    )  # fmt: skip
    burst_per_source: int = _setting(
        LIMITS, 20, "Requests that one source may send at once before rate_per_source limits them.",
        "a whole number, 1 or more", _at_least(1), reloads=True,
    )  # fmt: skip
    error_budget: int = _setting(
        LIMITS, 10, "Close a connection after this many rejected lines; each answered line makes up for one.",
        NUMBER, _at_least(0), reloads=True,
    )  # fmt: skip
    on_reject: Literal["reply", "close"] = _setting(
        LIMITS, "reply", "Answer a bad line with an ERROR line, or close the connection without a reply.",
        "reply or close", _one_of("reply", "close"), reloads=True,
    )  # fmt: skip
    lame_duck: float = _setting(
        STOPPING, 0.0, "How long a stopping server, no longer ready, still accepts clients.",
        SECONDS, _is_duration, reloads=True,
    )  # fmt: skip
    grace: float = _setting(
        STOPPING, 5.0, "How long a stopping server then waits for its clients.",
        SECONDS, _is_duration, reloads=True,
    )  # fmt: skip
    fast_lane: bool = _setting(
        NETWORK, _YES, "Serve easy clients without a task for each, on systems with epoll.", BOOL, _is_bool
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        LOGGING, "info", "The lowest level of log lines to write.",
        "debug, info, warning or error", _one_of("debug", "info", "warning", "error"), reloads=True,
    )  # fmt: skip
    log_format: Literal["auto", "console", "json"] = _setting(
        LOGGING, "auto", "Format of log lines; auto is console on a terminal and json elsewhere.",
        "auto, console or json", _one_of("auto", "console", "json"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        if found := list(problems({each.name: getattr(self, each.name) for each in fields(self)})):
            raise found[0]


def problems(values: Mapping[str, Any]) -> Iterator[SettingError]:
    """Yield what is wrong with values of settings, each by itself and then between them."""
    good = True
    for each in fields(Settings):
        if each.name in values and not is_valid(each.name, values[each.name]):
            good = False
            yield wrong_value(each.name, values[each.name])
    if good:
        yield from _contradictions({each.name: each.default for each in fields(Settings)} | dict(values))


def is_valid(name: str, value: object) -> bool:
    """Whether a setting takes a value."""
    try:
        return bool(FIELDS[name].metadata["valid"](value))
    except (TypeError, OverflowError, AttributeError):  # of a type that does not even compare, for example
        return False


def wrong_value(name: str, value: object) -> SettingError:
    """Make the error for a value that a setting does not take."""
    return SettingError(name, value, FIELDS[name].metadata["takes"] + hint(name, value, HINTS[name]))


def _contradictions(values: Mapping[str, Any]) -> Iterator[SettingError]:
    allow, deny = parse_networks(values["allow"]), parse_networks(values["deny"])
    if allow and not set(allow).isdisjoint(deny):
        yield SettingError("deny", values["deny"], OTHER_NETWORKS)
    ports = [("port", values["host"]), ("tls_port", values["host"]), ("metrics_port", values["metrics_host"])]
    for place, (name, host) in enumerate(ports):
        for other, other_host in ports[:place]:
            same_host = host == other_host or "*" in (host, other_host)
            if values[name] and values[name] == values[other] and same_host:
                yield SettingError(name, values[name], f"a port that differs from the setting {other}")


FIELDS = {each.name: each for each in fields(Settings)}
HINTS = get_type_hints(Settings)
