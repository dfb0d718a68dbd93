"""All servers, their requirements, and the commands that start them."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.process import free_port

PEERS = Path(__file__).parent / "peers"
MOST_CONNECTIONS = "12000"


class MissingError(Exception):
    """A peer cannot run here; the text names the missing program or package."""


@dataclass(frozen=True)
class Dialogue:
    """The request, and the prefix and length of the answers; length 0: any length."""

    request: str = "TIME\r\n"
    prefix: str = "JAM "
    length: int = 14


@dataclass(frozen=True)
class Launch:
    """The command of one instance."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    metrics_port: int | None = None


@dataclass(frozen=True)
class Peer:
    """A server to measure; ``prepare`` builds it and returns the command for a port."""

    name: str
    title: str
    prepare: Callable[[int, Path], Launch]
    dialogue: Dialogue = Dialogue()


@functools.cache
def _triojam_help() -> str:
    help_text = subprocess.run(
        [sys.executable, "-m", "triojam", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    if help_text.returncode:
        raise MissingError("triojam does not start; pip install it first")
    return help_text.stdout


def triojam(*flags: str, metrics: bool = True) -> Callable[[int, Path], Launch]:
    """Prepare triojam with its default settings and these flags."""

    def prepare(port: int, _build: Path) -> Launch:
        for flag in flags:
            if (name := flag.partition("=")[0]) not in _triojam_help():
                raise MissingError(f"this triojam has no {name}")
        _triojam_help()
        metrics_port = free_port() if metrics else None
        command = [sys.executable, "-m", "triojam", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--metrics-host", "127.0.0.1", "--metrics-port", str(metrics_port or "none")]
        return Launch([*command, *flags], metrics_port=metrics_port)

    return prepare


def _python(module: str, *flags: str, needs: str = "") -> Callable[[int, Path], Launch]:
    def prepare(port: int, _build: Path) -> Launch:
        if needs and importlib.util.find_spec(needs) is None:
            raise MissingError(f"{needs} is missing: pip install 'triojam[bench]'")
        command = [sys.executable, "-m", f"benchmarks.peers.{module}", str(port), *flags]
        return Launch(command)

    return prepare


def _tool(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise MissingError(f"{program} is missing: apt install {package}")
    return path


def _built(command: list[str], target: Path) -> str:
    if not target.exists():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MissingError(f"the build failed: {done.stderr.strip()}")
    return str(target)


def compiled(source: Path, build: Path) -> str:
    """Compile a C file with the system's compiler; return the program's path."""
    compiler = _tool(os.environ.get("CC", "cc"), "gcc libc6-dev")
    target = build / f"c-{source.stem}"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(target), str(source)]
    return _built(command, target)


def _c(port: int, build: Path) -> Launch:
    return Launch([compiled(PEERS / "server.c", build), str(port)])


def delaying(delay_ms: float, stall_ms: float = 0, period_ms: float = 0) -> Callable[[int, Path], Launch]:
    """Prepare a server that answers after `delay_ms`, and not during the last `stall_ms` of each period."""

    def prepare(port: int, build: Path) -> Launch:
        times = (delay_ms, stall_ms, period_ms)
        return Launch([compiled(PEERS / "delay.c", build), str(port), *map(str, times)])

    return prepare


def _go(port: int, build: Path) -> Launch:
    target = build / "go-server"
    command = [_tool("go", "golang-go"), "build", "-o", str(target), str(PEERS / "server.go")]
    return Launch([_built(command, target), str(port)], {"GOMAXPROCS": "1"})


def _redis(port: int, _build: Path) -> Launch:
    """Start redis without protected mode: it accepts only 127.0.0.1, and the client uses 127.1.0.0/16."""
    command = [_tool("redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", str(port)]
    command += ["--protected-mode", "no", "--save", "", "--maxclients", MOST_CONNECTIONS]
    return Launch(command)


def _memcached(port: int, _build: Path) -> Launch:
    command = [_tool("memcached", "memcached"), "-l", "127.0.0.1", "-p", str(port), "-t", "1"]
    as_root = ["-u", "nobody"] if os.geteuid() == 0 else []
    return Launch([*command, "-c", MOST_CONNECTIONS, *as_root])


TRIOJAM = Peer("triojam", "triojam", triojam())
ALL = (
    TRIOJAM,
    Peer("triojam-portable", "triojam, portable", triojam("--no-fast-lane")),
    Peer("trio", "Trio, a task per client", _python("trio_tasks", needs="trio")),
    Peer("threads", "socketserver, a thread per client", _python("threads")),
    Peer("streams", "asyncio streams", _python("asyncio_streams")),
    Peer("protocol", "asyncio Protocol", _python("asyncio_protocol")),
    Peer(
        "uvloop-streams",
        "uvloop streams",
        _python("asyncio_streams", "--uvloop", needs="uvloop"),
    ),
    Peer(
        "uvloop-protocol",
        "uvloop Protocol",
        _python("asyncio_protocol", "--uvloop", needs="uvloop"),
    ),
    Peer("gevent", "gevent", _python("gevent_server", needs="gevent")),
    Peer("go", "Go, GOMAXPROCS=1", _go),
    Peer("c", "C, epoll", _c),
    Peer("redis", "redis, PING", _redis, Dialogue("PING\r\n", "+PONG\r\n", 7)),
    Peer("memcached", "memcached, version", _memcached, Dialogue("version\r\n", "VERSION ", 0)),
)


def chosen(names: str) -> tuple[Peer, ...]:
    """Return the peers in a comma-separated list, and always triojam."""
    if not names:
        return ALL
    wanted = {TRIOJAM.name, *names.split(",")}
    unknown = sorted(wanted - {peer.name for peer in ALL})
    if unknown:
        known = ", ".join(peer.name for peer in ALL)
        raise SystemExit(f"unknown peers {', '.join(unknown)}; there are {known}")
    return tuple(peer for peer in ALL if peer.name in wanted)
