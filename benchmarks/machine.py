"""The machine and the versions of a measurement; a number without them has no meaning."""

import datetime as dt
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

PACKAGES = ("triojam", "trio", "uvloop", "gevent", "h11", "prometheus-client")
TOOLS = {
    "cc": ("cc", "--version"),
    "go": ("go", "version"),
    "redis": ("redis-server", "--version"),
    "memcached": ("memcached", "-V"),
}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tool(command: tuple[str, ...]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.partition("\n")[0].strip()


def described() -> dict[str, object]:
    """Return the machine, the date, all versions and the command line, ready for JSON."""
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        },
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: _package(name) for name in PACKAGES},
            **{name: _tool(command) for name, command in TOOLS.items()},
        },
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    }


def sentence(description: dict[str, object]) -> str:
    """Return the machine in one line, for the text below a table."""
    machine = description["machine"]
    assert isinstance(machine, dict)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {platform.python_version()}; {description['date']}"
    )
