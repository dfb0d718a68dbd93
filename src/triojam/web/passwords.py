"""Passwords of the metrics port: bcrypt hashes, verified outside of the event loop, once for each user.

A bcrypt hash is slow by design, from tens of milliseconds to a second of one core. A verified password is
remembered as a digest under a key of this process, which costs microseconds.
"""

import hashlib
import hmac
from collections.abc import Mapping

import bcrypt
import trio

# The most passwords that are hashed or wait for that.
MOST_WAITING = 4
# bcrypt ignores the bytes after these: a longer password would match whatever its end.
_MOST_BYTES = 72


class Passwords:
    """The users and the hashes of their passwords, which a reload replaces. False if there are none.

    key: random, for this process only.
    """

    def __init__(self, hashes: Mapping[bytes, bytes], *, key: bytes) -> None:
        self._hashes = dict(hashes)
        self._key = key
        self._remembered: dict[bytes, bytes] = {}  # by user: the digest of the verified password
        self._hashing = trio.Lock()
        self._checks: dict[bytes, _Check] = {}  # by user, password and hash: those that are not done yet

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def __contains__(self, user: bytes) -> bool:
        return user in self._hashes

    def replace(self, hashes: Mapping[bytes, bytes]) -> None:
        """Accept these users from now on. A user whose hash has not changed stays remembered."""
        same = self._hashes.items() & hashes.items()
        self._remembered = {user: self._remembered[user] for user, _ in same if user in self._remembered}
        self._hashes = dict(hashes)

    @property
    def busy(self) -> bool:
        """Whether no other password may wait: each takes up to a second."""
        return len(self._checks) >= MOST_WAITING

    def checking(self, user: bytes, password: bytes) -> bool:
        """Whether this password is being verified. Another request with it costs no other hash."""
        return self._name(user, password) in self._checks

    def remembers(self, user: bytes, password: bytes) -> bool:
        """Whether the password was verified before. This is fast: it computes no bcrypt hash."""
        remembered = self._remembered.get(user, b"")
        return hmac.compare_digest(remembered, self._digest(user, password))

    async def verify(self, user: bytes, password: bytes) -> bool:
        """Whether the password is right. An unknown user takes the same time as a known one."""
        if len(password) > _MOST_BYTES:
            await trio.lowlevel.checkpoint()
            return False
        name = self._name(user, password)
        if (check := self._checks.get(name)) is not None:
            await check.done.wait()
            return check.right
        check = self._checks[name] = _Check()
        try:
            check.right = await self._verify(user, password)
        finally:
            del self._checks[name]
            check.done.set()
        return check.right

    async def _verify(self, user: bytes, password: bytes) -> bool:
        known = self._hashes.get(user)
        hashed = known or self._decoy(user)
        async with self._hashing:
            # A thread cannot be cancelled. The end of the server does not wait for it.
            matches = await trio.to_thread.run_sync(bcrypt.checkpw, password, hashed, abandon_on_cancel=True)
        # A reload may have replaced the hashes meanwhile.
        right = matches and known is not None and known == self._hashes.get(user)
        if right:
            self._remembered[user] = self._digest(user, password)
        return right

    def _name(self, user: bytes, password: bytes) -> bytes:
        return self._digest(user, password) + self._hashes.get(user, b"")

    def _decoy(self, user: bytes) -> bytes:
        """Return the hash of some user, always the same for this name: its cost is that of a real hash."""
        hashes = list(self._hashes.values())
        return hashes[int.from_bytes(self._digest(user, b"")) % len(hashes)]

    def _digest(self, user: bytes, password: bytes) -> bytes:
        return hashlib.blake2b(user + b":" + password, key=self._key).digest()  # a user's name has no colon


class _Check:
    """A password that is being verified. done: is set when `right` has its value."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.right = False
