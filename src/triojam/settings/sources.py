"""The sources of settings beside the command line: the environment, and a file.

A flag wins over an environment variable, a variable over the file, the file over the default. An error is
one line that names the key or variable and says what is expected.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, get_origin

from triojam.errors import ConfigurationError, all_of, invalid_value, unknown
from triojam.settings.fields import FIELDS, HINTS, is_valid, wrong_value
from triojam.settings.reading import read_bounded

PREFIX = "TRIOJAM_"
CONFIG_VARIABLE = "TRIOJAM_CONFIG"

# No setting is a table: a key has one part.
_DEEP_KEY = re.compile(r"""^[ \t\[]*(?:[\w"'-]+[ \t]*\.[ \t]*){20}""", re.MULTILINE)
# More lines than a person reads.
MOST_PROBLEMS = 100

NONE = "none"
# Whole numbers of TOML have 64 bits (TOML 1.0, "Integer"); Python's parser takes any.
_INTEGER_LIMIT = 2**63

_LISTS = {"allow", "deny", "proxies"}  # may be arrays in the file


def check_variables(names: Iterable[str]) -> None:
    """Raise ConfigurationError for an environment variable with the prefix that is no setting."""
    known = [*(PREFIX + name.upper() for name in FIELDS), CONFIG_VARIABLE]
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in known:
            raise unknown("environment variable", name, known)


def read_settings_file(path: str, named_by: str, *, again: bool = False) -> dict[str, Any]:
    """Read a TOML file of settings, all of which are checked, and return them by name.

    named_by: the flag or variable that names the file. again: whether it was read before; a pipe cannot be
    read a second time.

    Raises ConfigurationError.
    """
    expected = "a TOML file with settings"
    try:
        content = read_bounded(path, any_kind=not again)
    except OSError as exc:
        raise invalid_value(path, named_by, f"{expected} ({(exc.strerror or str(exc)).lower()})") from exc
    except ValueError as exc:
        raise invalid_value(path, named_by, f"{expected} ({exc})") from exc
    try:
        text = content.decode("utf-8-sig")
        # The parser takes a time that grows with the square of the parts of a key.
        data = tomllib.loads("" if (deep := _DEEP_KEY.search(text)) else text)
    except (ValueError, RecursionError) as exc:  # no UTF-8, no TOML, too many digits, or too deep
        raise invalid_value(path, named_by, f"{expected} ({exc})") from exc
    for key in _LISTS & data.keys():
        if isinstance(data[key], list) and all(isinstance(each, str) for each in data[key]):
            data[key] = ",".join(data[key])
    if deep:
        raise invalid_value(path, named_by, f"{expected} (a key of too many parts)")
    found = list(islice(_problems(data, path), MOST_PROBLEMS))
    if found:
        raise all_of(found)
    return data


def _problems(data: Mapping[str, Any], path: str) -> Iterator[ConfigurationError]:
    """Yield what is wrong with each key, also where a flag or a variable overrides it."""
    for key, value in data.items():
        if key not in FIELDS:
            yield unknown("setting", key, FIELDS, where=f" in {path}")
            continue
        plain = None if value == NONE and HINTS[key] == int | None else value
        if not (_is_of_type(plain, HINTS[key]) and is_valid(key, plain)):
            takes = wrong_value(key, value).takes
            if isinstance(value, str) and re.fullmatch(r"[\d.]+|true|false", value):
                takes += "; write it without quotes"
            yield invalid_value(value, f"{key} in {path}", takes)


def _is_of_type(value: object, hint: Any) -> bool:
    """Whether a TOML value is of the type that a setting has; a whole number is a duration, too."""
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
        return False
    return isinstance(value, int | float if hint is float else hint)
