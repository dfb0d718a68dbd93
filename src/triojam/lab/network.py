"""Where the lab listens, and the address at which others find it."""

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from triojam.errors import LabError, invalid_value

LOOPBACK = "127.0.0.1"
# Addresses for documentation: connecting a datagram socket sends nothing, but chooses a route.
_FAR_AWAY = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_ANY_PORT = 9


@dataclass(frozen=True)
class Network:
    """Where a lab's programs listen.

    listens: the address. shown: an address that reaches them. ports: by the name of the flag; 0 is any free
    port.
    """

    listens: str = LOOPBACK
    shown: str = LOOPBACK
    ports: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether other machines may reach the lab."""
        return not ip_address(self.listens).is_loopback

    @property
    def names(self) -> str:
        """The names by which a class may ask for this machine, beside its IP addresses and its host name."""
        name = socket.gethostname().partition(".")[0]
        return f"{name}.local,{socket.getfqdn()}" if self.is_open else ""

    def url(self, port: int) -> str:
        """Return the URL of a port."""
        return f"http://{in_url(self.shown)}:{port}/"

    def port_of(self, program: str) -> int:
        """Return the port of a program: that of its flag, or a free one."""
        return self.ports.get(f"--{program.lower()}-port", 0) or self.reserve_port()

    def reserve_port(self) -> int:
        """Return a free port that the kernel assigns to no other socket for a minute.

        The side of a connection that closes first keeps its port in TIME_WAIT. During that time the kernel
        does not choose the port, but a listener may ask for it by number.
        """
        with _listen(self.listens, 0) as listener:
            port: int = listener.getsockname()[1]
            with socket.create_connection((self.shown, port)) as client:
                listener.accept()[0].close()
                client.recv(1)
        return port

    def listen(self, port: int) -> socket.socket:
        """Open a listening socket."""
        return _listen(self.listens, port)


def choose_network(bind: str, ports: Mapping[str, int]) -> Network:
    """Check an address and ports, each by the name of its flag; a port may be 0.

    Raises ConfigurationError if the address cannot be used or two ports are the same, and LabError if a port
    is taken.
    """
    try:
        address = ip_address(bind)
        with _listen(bind, 0):
            pass
    except (ValueError, OSError):
        raise invalid_value(bind, "--bind", "an IP address of this machine, or 0.0.0.0 for all") from None
    flags: dict[int, str] = {}
    for flag, port in ports.items():
        if port == 0:
            continue
        if port in flags:
            raise invalid_value(port, flag, f"another port than that of {flags[port]}")
        flags[port] = flag
        try:
            with _listen(bind, port):
                pass
        except OSError as exc:
            text = "is already in use" if exc.errno == errno.EADDRINUSE else f"cannot be used: {exc.strerror}"
            raise LabError(f"lab: port {port} of {flag} {text}") from None
    return Network(bind, _outward(address.version) if address.is_unspecified else bind, ports)


def in_url(host: str) -> str:
    """Return a host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def _listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=_family(6 if ":" in host else 4))


def _outward(version: int) -> str:
    """Return this machine's address towards other machines; that of loopback if it has no route."""
    family = _family(version)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((_FAR_AWAY[family], _ANY_PORT))
            host: str = sock.getsockname()[0]
            return host
    except OSError:
        return "::1" if version == 6 else LOOPBACK


def _family(version: int) -> socket.AddressFamily:
    return socket.AF_INET6 if version == 6 else socket.AF_INET
