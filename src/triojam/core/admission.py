"""Decides which addresses may connect, how many connections a source may have, and how often it may ask.

A *source* is an IPv4 address or an IPv6 /64. A /64 is the smallest network that a provider gives to a
customer (RFC 6177), so a client cannot become a new source with each of its 2**64 addresses. The table of
sources has a fixed size; the least recently used source is forgotten. Without limits by source, there is no
table.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, ip_network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from triojam.core.addresses import endpoint
from triojam.core.reasons import Refusal

# Bits of an address, length of the prefix, and the prefix as a number. Plain numbers: a list may have tens of
# thousands, and the garbage collector would look at objects again and again.
Network = tuple[int, int, int]

MOST_SOURCES = 65_536
# Sources with open connections are kept longer: an eviction skips up to this many of them.
PASSED_OVER = 8

# A socket for both families shows IPv4 clients with IPv4-mapped addresses (RFC 4291, 2.5.5.2).
_MAPPED = bytes(10) + b"\xff\xff"
_MAPPED_BITS = 96
_SOURCE_BYTES = 8  # of an IPv6 address: a /64

# A request may be early by rounding errors, in seconds.
_ROUNDING = 1e-6


class Source:
    """One source. connections: open now. due: when its bucket will be full, in seconds."""

    __slots__ = ("connections", "due")

    def __init__(self) -> None:
        self.connections = 0
        self.due = 0.0


# Stands for every source while there are no limits by source, and for connections without such limits.
ANYONE = Source()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which addresses are admitted, and the limits of one source.

    allow, deny: the longest network that contains an address decides. An address in none of them is denied if
        `allow` has any network.
    connections_per_source: open at once; 0 = no limit.
    rate_per_source: requests a second in the long run; 0 = no limit. burst_per_source: requests at once.
    proxies: connections from these networks begin with a PROXY header.
    """

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    connections_per_source: int = 0
    rate_per_source: float = 0.0
    burst_per_source: int = 1
    proxies: tuple[Network, ...] = ()
    networks: "_Networks" = field(init=False, repr=False, compare=False)
    proxy_networks: "_Networks" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Here, and not in `set_policy`: tens of thousands of networks take long, and a thread may do it.
        object.__setattr__(self, "networks", _Networks(self.allow, self.deny))
        object.__setattr__(self, "proxy_networks", _Networks(self.proxies, ()))


@lru_cache(maxsize=4)
def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a list such as `192.0.2.0/24, 2001:db8::/32`. Raises ValueError."""
    networks: list[Network] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        network = ip_network(word)
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= _MAPPED_BITS:
            network = IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
        size, length = network.max_prefixlen, network.prefixlen
        networks.append((size, length, int(network.network_address) >> (size - length)))
    return tuple(networks)


class Admission:
    """Decides by a policy, which may be replaced at any time. Times are in seconds, all on the same clock.

    own: the endpoints of this process's own clients that no listener has accepted yet. They are admitted
        whatever the policy says. itself: the source of the accepted ones; it has no limits.
    evictions: how many sources were forgotten because the table was full.
    limits_rate, limits_sources, has_proxies: whether the policy has such limits, and proxies.
    """

    def __init__(self, policy: Policy) -> None:
        self.own: set[tuple[str, int]] = set()
        self.itself = Source()
        self.evictions = 0
        self._sources: OrderedDict[bytes, Source] = OrderedDict()
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Decide by `policy` from now on. The known sources stay, if there are limits by source."""
        self._policy = policy
        self._networks = policy.networks
        self._proxies = policy.proxy_networks
        self.has_proxies = bool(policy.proxies)
        self.limits_rate = policy.rate_per_source > 0
        self.limits_sources = self.limits_rate or policy.connections_per_source > 0
        self._interval = 1 / policy.rate_per_source if self.limits_rate else 0.0
        self._tolerance = self._interval * policy.burst_per_source + _ROUNDING
        if not self.limits_sources:
            # Sources with counted connections stay: if limits come back, these are not counted a second time.
            used = {key: source for key, source in self._sources.items() if source.connections}
            self._sources = OrderedDict(used)

    def is_proxy(self, host: str) -> bool:
        """Whether a connection from `host`, an IP address, begins with a PROXY header."""
        return self.has_proxies and self._proxies.admit(_packed(host))

    def refusal(self, host: str | None, *, full: bool) -> Refusal | None:
        """Return why a new connection from `host`, an IP address, must be refused, or None.

        host: None for a proxy's own connection: networks and limits by source do not apply to it.
        full: whether the limit of open connections is reached.
        """
        busy = Refusal.BUSY if full else None
        if not (self._networks or self.limits_sources) or host is None:
            return busy
        address = _packed(host)
        if not self._networks.admit(address):
            return Refusal.DENIED
        most = self._policy.connections_per_source
        source = self._sources.get(_key(address))
        return Refusal.PER_SOURCE if most and source is not None and source.connections >= most else busy

    def enter(self, host: str | None) -> Source:
        """Count a connection from `host` until `leave` is called with the returned source."""
        if not self.limits_sources or host is None:
            return ANYONE
        key = _key(_packed(host))
        source = self._sources.get(key)
        if source is None:
            if len(self._sources) >= MOST_SOURCES:
                self._evict()
            source = self._sources[key] = Source()
        else:
            self._sources.move_to_end(key)
        source.connections += 1
        return source

    def enter_own(self, address: tuple[Any, ...]) -> bool:
        """Whether a new connection is this process's own. If so, count it from `itself` until `leave`.

        Its address is then forgotten: the next connection from there may be another client's.
        """
        client = endpoint(address)
        if client not in self.own:
            return False
        self.own.remove(client)
        self.itself.connections += 1
        return True

    def leave(self, source: Source) -> None:
        """Uncount a connection that `enter` counted; it has ended."""
        if source is not ANYONE:
            source.connections -= 1

    def permits(self, source: Source, now: float) -> int:
        """Return how many requests the bucket of a source permits `now`."""
        return max(int((now + self._tolerance - max(source.due, now)) / self._interval), 0)

    def spend(self, source: Source, requests: int, now: float) -> None:
        """Take a token for each of `requests` that came `now`; they must be permitted."""
        source.due = max(source.due, now) + requests * self._interval

    def take(self, source: Source, now: float) -> bool:
        """Take a token for one request that came `now`; False if there is none."""
        permitted = self.permits(source, now) > 0
        if permitted:
            self.spend(source, 1, now)
        return permitted

    def beyond_rate(
        self, asking: Iterable[tuple[int, int]], sources: Mapping[int, Source], now: float
    ) -> list[tuple[int, int]]:
        """Take tokens for the requests of many clients; return the clients whose bucket has too few.

        asking: each client, and how many requests it sent; a token is taken for each request, or for none.
        sources: the sources of the clients that have limits.

        A bucket is one number: the time when it will be full again (virtual scheduling, ITU-T I.371). Each
        request delays that time by one interval. One call handles all clients, because a call for each client
        would double the cost of a request in the fast lane.
        """
        interval, latest = self._interval, now + self._tolerance
        beyond = []
        for client, requests in asking:
            source = sources.get(client)
            if source is not None:
                due = source.due
                if due < now:  # noqa: PLR1730  # max() would be a call for each client
                    due = now
                due += requests * interval
                if due > latest:
                    beyond.append((client, requests))
                else:
                    source.due = due
        return beyond

    def _evict(self) -> None:
        self.evictions += 1
        for _ in range(PASSED_OVER):
            key, source = self._sources.popitem(last=False)
            if not source.connections:
                return
            self._sources[key] = source
        self._sources.popitem(last=False)


class _Networks:
    """Finds the longest network that contains an address. False if there are no networks."""

    def __init__(self, allow: Collection[Network], deny: Iterable[Network]) -> None:
        self._otherwise = not allow
        # By address size in bits, then by prefix length (the longest first), then by network prefix.
        self._verdicts: dict[int, dict[int, dict[int, bool]]] = {}
        self._add(allow, verdict=True)
        self._add(deny, verdict=False)
        for size, lengths in self._verdicts.items():
            self._verdicts[size] = dict(sorted(lengths.items(), reverse=True))

    def __bool__(self) -> bool:
        return bool(self._verdicts)

    def admit(self, address: bytes) -> bool:
        """Whether an address, in network byte order, is admitted."""
        size = len(address) * 8
        number = int.from_bytes(address)
        for length, verdicts in self._verdicts.get(size, {}).items():
            verdict = verdicts.get(number >> (size - length))
            if verdict is not None:
                return verdict
        return self._otherwise

    def _add(self, networks: Iterable[Network], *, verdict: bool) -> None:
        for size, length, prefix in networks:
            self._verdicts.setdefault(size, {}).setdefault(length, {})[prefix] = verdict


def _packed(host: str) -> bytes:
    """Return an address as 4 or 16 bytes; text that is not an address gives no bytes."""
    try:
        if ":" not in host:
            return inet_pton(AF_INET, host)
        address = inet_pton(AF_INET6, host.partition("%")[0])
    except OSError:
        return b""
    return address.removeprefix(_MAPPED)


def _key(address: bytes) -> bytes:
    return address[:_SOURCE_BYTES]
