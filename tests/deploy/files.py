"""The files of deploy/, and what is read from them."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIGURATION = DEPLOY / "haproxy" / "haproxy.cfg"
SYSCTLS = sorted((DEPLOY / "sysctl.d").glob("*.conf"))
FOR_ALL_MACHINES = DEPLOY / "sysctl.d" / "60-triojam.conf"


def settings_beside() -> dict[str, Any]:
    """Return the settings of servers that the comments of haproxy.cfg ask for."""
    lines = re.findall(r"^#   (\w+ = .*?)(?:  .*)?$", CONFIGURATION.read_text("utf-8"), re.MULTILINE)
    return tomllib.loads("\n".join(lines))


def sysctls(file: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield each key of a file of sysctl.d(5), its value, and whether it may fail."""
    for line in file.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            key, value = line.split(" = ")
            yield key.removeprefix("-"), value, key.startswith("-")
