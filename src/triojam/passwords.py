"""Who may use the web listener: a file of users and bcrypt hashes, as `htpasswd -B` and Prometheus have it.

A bcrypt hash is slow by design, from tens of milliseconds to a second of one core. It is computed outside of
the event loop's thread, one at a time, and once for each user who comes with the right password: that is then
remembered as a digest under a key of this process, and costs microseconds.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

import bcrypt
import trio

from triojam.settings import PASSWORDS, SettingError

# The costs that are taken: 14 is about a second. One that takes minutes would shut everybody out.
_LEAST_COST, _MOST_COST = 4, 14
# bcrypt looks at no more of a password. One that is longer would be right whatever its end.
_MOST_BYTES = 72

# 16 bytes of salt and 23 of hash in bcrypt's own base64, where two bits of the salt's last letter count.
_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")


class Passwords:
    """The users with their passwords, which may be replaced at any time. False if there are none.

    key: random, of this process alone.
    """

    def __init__(self, hashes: Mapping[bytes, bytes], *, key: bytes) -> None:
        self._hashes = dict(hashes)
        self._key = key
        self._remembered: dict[bytes, bytes] = {}  # of each user the password that was right, as a digest
        self._hashing = trio.Lock()

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def __contains__(self, user: bytes) -> bool:
        return user in self._hashes

    def replace(self, hashes: Mapping[bytes, bytes]) -> None:
        """Let in these users from now on. Whose hash is the same as before stays remembered."""
        same = self._hashes.items() & hashes.items()
        self._remembered = {user: self._remembered[user] for user, _ in same if user in self._remembered}
        self._hashes = dict(hashes)

    def remembers(self, user: bytes, password: bytes) -> bool:
        """Whether they have been found right before; without any hashing that could take long."""
        remembered = self._remembered.get(user, b"")
        return hmac.compare_digest(remembered, self._digest(user, password))

    async def verify(self, user: bytes, password: bytes) -> bool:
        """Whether they are right. It takes as long for a user who does not exist."""
        if len(password) > _MOST_BYTES:
            await trio.lowlevel.checkpoint()
            return False
        known = self._hashes.get(user)
        hashed = known or self._decoy(user)
        async with self._hashing:
            if self.remembers(user, password):  # found while this call waited for its turn
                return True
            matches = await trio.to_thread.run_sync(bcrypt.checkpw, password, hashed)
            # The file may have been replaced meanwhile.
            right = matches and known is not None and known == self._hashes.get(user)
            if right:
                self._remembered[user] = self._digest(user, password)
            return right

    def _decoy(self, user: bytes) -> bytes:
        """Return somebody's hash, the same whenever this name comes: its cost is one that a user has."""
        hashes = list(self._hashes.values())
        return hashes[int.from_bytes(self._digest(user, b"")) % len(hashes)]

    def _digest(self, user: bytes, password: bytes) -> bytes:
        return hashlib.blake2b(user + b":" + password, key=self._key).digest()  # no user has a colon


def load(path: str) -> dict[bytes, bytes]:
    """Read the file: the hash of each user. No path, no users.

    Raises SettingError, which says what is wrong with which line, and never what stands there.
    """
    if not path:
        return {}
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as exc:
        raise _fault(path, (exc.strerror or str(exc)).lower()) from exc
    except ValueError as exc:  # not UTF-8; or a path with a NUL
        raise _fault(path, "not a text file in UTF-8") from exc
    hashes: dict[bytes, bytes] = {}
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line or line.startswith("#"):
            continue
        user, _, hashed = line.partition(":")
        if why := _why_not(user, hashed) or ("a user for the second time" if user.encode() in hashes else ""):
            raise _fault(path, f"line {number}: {why}")
        hashes[user.encode()] = hashed.encode()
    if not hashes:
        raise _fault(path, "no users")
    return hashes


def _why_not(user: str, hashed: str) -> str:
    if not user or not user.isprintable():
        return "no user before a colon"
    if (match := _HASH.fullmatch(hashed)) is None:
        return "no bcrypt hash after the user and a colon"
    cost = int(match[1])
    return "" if _LEAST_COST <= cost <= _MOST_COST else f"a cost of {cost}"


def _fault(path: str, why: str) -> SettingError:
    return SettingError("metrics_passwords", path, f"{PASSWORDS} ({why})")
