"""The sources of settings beside the command line: the environment, and a file.

A flag wins over an environment variable, a variable over the file, the file over the default. An error is
one line that names the key or variable and says what is expected.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, get_origin, get_type_hints

from triojam.errors import invalid_value, unknown
from triojam.settings.fields import Settings

PREFIX = "TRIOJAM_"
CONFIG_VARIABLE = "TRIOJAM_CONFIG"

# Larger files are refused: a mistake, or /dev/zero.
LONGEST_FILE = 1024 * 1024

NONE = "none"
# Whole numbers of TOML have 64 bits (TOML 1.0, "Integer"); Python's parser takes any.
_INTEGER_LIMIT = 2**63

FIELDS = {each.name: each for each in fields(Settings)}
HINTS = get_type_hints(Settings)
_LISTS = {"allow", "deny"}  # may be arrays in the file


def check_variables(names: Iterable[str]) -> None:
    """Raise ConfigurationError for an environment variable with the prefix that is no setting."""
    known = [*(PREFIX + name.upper() for name in FIELDS), CONFIG_VARIABLE]
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in known:
            raise unknown("environment variable", name, known)


def read_bounded(path: str) -> bytes:
    """Read a file of at most LONGEST_FILE bytes. Raises OSError, or ValueError with the reason."""
    with open(path, "rb") as file:  # noqa: PTH123  # Path("") would be the current folder
        content = file.read(LONGEST_FILE + 1)
    if len(content) > LONGEST_FILE:
        raise ValueError(f"longer than {LONGEST_FILE} bytes")
    return content


def read_settings_file(path: str, named_by: str) -> dict[str, Any]:
    """Read a TOML file of settings, all of which are checked, and return them by name.

    named_by: the flag or variable that names the file. Raises ConfigurationError.
    """
    expected = "a TOML file with settings"
    try:
        content = read_bounded(path)
    except OSError as exc:
        raise invalid_value(path, named_by, f"{expected} ({(exc.strerror or str(exc)).lower()})") from exc
    except ValueError as exc:
        raise invalid_value(path, named_by, f"{expected} ({exc})") from exc
    try:
        data = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as exc:  # no UTF-8, no TOML, too many digits, or too deep
        raise invalid_value(path, named_by, f"{expected} ({exc})") from exc
    for key in _LISTS & data.keys():
        if isinstance(data[key], list) and all(isinstance(each, str) for each in data[key]):
            data[key] = ",".join(data[key])
    for key, value in data.items():  # all of them, also those that a flag or variable overrides
        if key not in FIELDS:
            raise unknown("setting", key, FIELDS, where=f" in {path}")
        metadata = FIELDS[key].metadata
        plain = None if value == NONE and HINTS[key] == int | None else value
        if not (_is_of_type(plain, HINTS[key]) and metadata["valid"](plain)):
            raise invalid_value(value, f"{key} in {path}", metadata["takes"])
    return data


def _is_of_type(value: object, hint: Any) -> bool:
    """Whether a TOML value is of the type that a setting has; a whole number is a duration, too."""
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
        return False
    return isinstance(value, int | float if hint is float else hint)
