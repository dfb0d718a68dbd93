"""Who may connect, with how many connections, and how often ask: decisions only.

No I/O and no clock: addresses and the time are passed in. A *source* is an IPv4 address or an IPv6 /64, the
least that one customer is given (RFC 6177), so that nobody is a new source for each of 2**64 addresses. The
table of sources has a fixed size, and the least recently used one gives way; without limits by source, there
is no table at all.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from socket import AF_INET, AF_INET6, inet_pton

from triojam.core.reasons import Refusal

Network = IPv4Network | IPv6Network

MOST_SOURCES = 65_536
# A source with open connections is in use: so many of them are passed over before one of them is put out.
PASSED_OVER = 8

# IPv4-mapped addresses (RFC 4291, 2.5.5.2) are what a socket for both families says of an IPv4 client.
_MAPPED = bytes(10) + b"\xff\xff"
_MAPPED_BITS = 96
_SOURCE_BYTES = 8  # of an IPv6 address: a /64

# Requests are let through that are early by no more than rounding, in seconds.
_ROUNDING = 1e-6


class Source:
    """What is known of one source. connections: open now. due: when its bucket will be full, in seconds."""

    __slots__ = ("connections", "due")

    def __init__(self) -> None:
        self.connections = 0
        self.due = 0.0


# Stands for every source while nothing is limited by source.
ANYONE = Source()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who is let in, and how much of the service one source may have.

    allow, deny: the longest network that holds an address decides; without one, the address is denied if
        anything is allowed by name.
    connections_per_source: open at once; 0 = no limit.
    rate_per_source: requests a second in the long run; 0 = no limit. burst_per_source: at once.
    """

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    connections_per_source: int = 0
    rate_per_source: float = 0.0
    burst_per_source: int = 1


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a list such as `192.0.2.0/24, 2001:db8::/32`. Raises ValueError."""
    networks: list[Network] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        network = ip_network(word)
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= _MAPPED_BITS:
            network = IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
        networks.append(network)
    return tuple(networks)


class Admission:
    """Decides by a policy, which may be replaced at any time. Times are in seconds, on any one clock.

    own: host and port of this process's own clients, which are let in whatever the policy.
    evictions: how many sources gave way to others in a full table.
    """

    def __init__(self, policy: Policy) -> None:
        self.own: set[tuple[str, int]] = set()
        self.evictions = 0
        self._sources: OrderedDict[bytes, Source] = OrderedDict()
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Decide by `policy` from now on. What is known of the sources stays, if any has a limit."""
        self._policy = policy
        self._networks = _Networks(policy)
        self.limits_rate = policy.rate_per_source > 0
        self.limits_sources = self.limits_rate or policy.connections_per_source > 0
        self._interval = 1 / policy.rate_per_source if self.limits_rate else 0.0
        self._tolerance = self._interval * policy.burst_per_source + _ROUNDING
        if not self.limits_sources:
            # Connections that are counted are not counted again, should limits come back: their sources stay.
            used = {key: source for key, source in self._sources.items() if source.connections}
            self._sources = OrderedDict(used)

    def refusal(self, host: str, *, full: bool) -> Refusal | None:
        """Return why a new connection from `host`, an IP address, is to be refused, or None.

        full: whether as many connections are open as there may be.
        """
        busy = Refusal.BUSY if full else None
        if not (self._networks or self.limits_sources):
            return busy
        address = _packed(host)
        if not self._networks.admit(address):
            return Refusal.DENIED
        most = self._policy.connections_per_source
        source = self._sources.get(_key(address))
        return Refusal.PER_SOURCE if most and source is not None and source.connections >= most else busy

    def enter(self, host: str) -> Source:
        """Count a connection from `host`, until it leaves."""
        if not self.limits_sources:
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

    def leave(self, source: Source) -> None:
        """Take off a connection that `enter` counted; it has ended."""
        if source is not ANYONE:
            source.connections -= 1

    def permits(self, source: Source, now: float) -> int:
        """Return for how many requests that came `now` there are tokens in the bucket of their source."""
        return max(int((now + self._tolerance - max(source.due, now)) / self._interval), 0)

    def spend(self, source: Source, requests: int, now: float) -> None:
        """Take a token for each of `requests` that came `now`, which must be permitted."""
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
        """Take tokens for many clients' requests, and return those for which there are too few.

        asking: for each client, how many requests came `now`; either a token is taken for each, or none.
        sources: of the clients, but for those that nothing limits.

        A bucket is a single number, when it will be full again (the virtual scheduling of ITU-T I.371): each
        request puts that off by the time in which its token comes back. All at once, because a call for each
        client would cost as much again as everything that the fast lane does in Python for a request.
        """
        interval, latest = self._interval, now + self._tolerance
        beyond = []
        for client, requests in asking:
            source = sources.get(client)
            if source is not None:
                due = source.due
                if due < now:  # noqa: PLR1730  # max() is a call for each client, again
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
    """Which of the networks that hold an address is the longest. False if there are none at all."""

    def __init__(self, policy: Policy) -> None:
        self._otherwise = not policy.allow
        # For each size of address, in bits: prefix lengths, the longest first, and their networks' verdicts.
        self._verdicts: dict[int, dict[int, dict[int, bool]]] = {}
        self._add(policy.allow, verdict=True)
        self._add(policy.deny, verdict=False)
        for size, lengths in self._verdicts.items():
            self._verdicts[size] = dict(sorted(lengths.items(), reverse=True))

    def __bool__(self) -> bool:
        return bool(self._verdicts)

    def admit(self, address: bytes) -> bool:
        """Whether an address, in network byte order, is let in."""
        size = len(address) * 8
        number = int.from_bytes(address)
        for length, verdicts in self._verdicts.get(size, {}).items():
            verdict = verdicts.get(number >> (size - length))
            if verdict is not None:
                return verdict
        return self._otherwise

    def _add(self, networks: Iterable[Network], *, verdict: bool) -> None:
        for network in networks:
            size = network.max_prefixlen
            prefix = int(network.network_address) >> (size - network.prefixlen)
            self._verdicts.setdefault(size, {}).setdefault(network.prefixlen, {})[prefix] = verdict


def _packed(host: str) -> bytes:
    """Return an address as 4 or 16 bytes; one that is no address, as none at all."""
    try:
        if ":" not in host:
            return inet_pton(AF_INET, host)
        address = inet_pton(AF_INET6, host.partition("%")[0])
    except OSError:
        return b""
    return address.removeprefix(_MAPPED)


def _key(address: bytes) -> bytes:
    return address[:_SOURCE_BYTES]
