"""What a wrong value was probably meant to be."""

import importlib.resources
import re
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any, Literal, get_args, get_origin

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def hint(name: str, value: object, kind: Any) -> str:
    """Return a hint to put behind what is expected, such as "; did you mean debug?", or nothing.

    name, kind: of the setting, and of its type.
    """
    meant = _meant(name, value, kind) if isinstance(value, str) else None
    return f"; did you mean {meant}?" if meant else ""


def _meant(name: str, text: str, kind: Any) -> str | None:
    if get_origin(kind) is Literal:
        return _ignoring_case(text, map(str, get_args(kind)))
    if name == "timezone":
        # Not zoneinfo.available_timezones: it opens each file of the system's folder, whatever that is.
        return _ignoring_case(text, importlib.resources.files("tzdata").joinpath("zones").read_text().split())
    if name in ("allow", "deny", "proxies"):
        return _strict_networks(text)
    if kind is float and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", text)):
        return f"{float(match[1]) * _UNITS[match[2]]:g}"
    return None


def _ignoring_case(text: str, known: Iterable[str]) -> str | None:
    return next((each for each in known if each.lower() == text.strip().lower()), None)


def _strict_networks(text: str) -> str | None:
    """Name the network of the first address that has bits beyond its prefix."""
    for word in text.split(","):
        try:
            ip_network(word.strip())
        except ValueError:
            try:
                return str(ip_network(word.strip(), strict=False))
            except ValueError:
                return None
    return None
