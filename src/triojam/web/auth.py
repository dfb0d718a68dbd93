"""Basic authentication (RFC 7617) in front of the web listener's application.

Guesses are limited per source, before any hashing. A password that was verified before passes without that
limit: an attacker with the same address as a scraper, or behind the same proxy, cannot lock the scraper out.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping

import bcrypt
import trio
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from triojam.core.admission import Admission, Policy
from triojam.core.counters import Counters
from triojam.core.reasons import AuthFailure

# Enough for typing errors. After that, one source has 8,640 guesses a day.
GUESSES_AT_ONCE = 10
SECONDS_PER_GUESS = 10
# Failures can be frequent, so not each of them gets a line in the log.
SECONDS_PER_LOG_LINE = 10.0

# bcrypt ignores the bytes after these: a longer password would match whatever its end.
_MOST_BYTES = 72

_CHALLENGE = {"WWW-Authenticate": 'Basic realm="triojam", charset="UTF-8"'}


class Passwords:
    """The users and the hashes of their passwords, which a reload replaces. False if there are none.

    key: random, for this process only.
    """

    def __init__(self, hashes: Mapping[bytes, bytes], *, key: bytes) -> None:
        self._hashes = dict(hashes)
        self._key = key
        self._remembered: dict[bytes, bytes] = {}  # by user: the digest of the verified password
        self._hashing = trio.Lock()

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def __contains__(self, user: bytes) -> bool:
        return user in self._hashes

    def replace(self, hashes: Mapping[bytes, bytes]) -> None:
        """Accept these users from now on. A user whose hash has not changed stays remembered."""
        same = self._hashes.items() & hashes.items()
        self._remembered = {user: self._remembered[user] for user, _ in same if user in self._remembered}
        self._hashes = dict(hashes)

    def remembers(self, user: bytes, password: bytes) -> bool:
        """Whether the password was verified before. This is fast: it computes no bcrypt hash."""
        remembered = self._remembered.get(user, b"")
        return hmac.compare_digest(remembered, self._digest(user, password))

    async def verify(self, user: bytes, password: bytes) -> bool:
        """Whether the password is right. An unknown user takes the same time as a known one."""
        if len(password) > _MOST_BYTES:
            await trio.lowlevel.checkpoint()
            return False
        known = self._hashes.get(user)
        hashed = known or self._decoy(user)
        async with self._hashing:
            if self.remembers(user, password):  # verified while this call waited
                return True
            matches = await trio.to_thread.run_sync(bcrypt.checkpw, password, hashed)
            # A reload may have replaced the hashes meanwhile.
            right = matches and known is not None and known == self._hashes.get(user)
            if right:
                self._remembered[user] = self._digest(user, password)
            return right

    def _decoy(self, user: bytes) -> bytes:
        """Return the hash of some user, always the same for this name: its cost is that of a real hash."""
        hashes = list(self._hashes.values())
        return hashes[int.from_bytes(self._digest(user, b"")) % len(hashes)]

    def _digest(self, user: bytes, password: bytes) -> bytes:
        return hashlib.blake2b(user + b":" + password, key=self._key).digest()  # a user's name has no colon


class BasicAuth:
    """Passes requests with a right password on to `app`; without any passwords, all requests.

    log: returns the logger. now: returns seconds; any clock will do.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        passwords: Passwords,
        counters: Counters,
        log: Callable[[], FilteringBoundLogger],
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self._app = app
        self._passwords = passwords
        self._counters = counters
        self._log = log
        self._now = now
        self._guesses = Admission(
            Policy(rate_per_source=1 / SECONDS_PER_GUESS, burst_per_source=GUESSES_AT_ONCE)
        )
        self._log_due = 0.0
        self._unlogged = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 401, or 429 after too many guesses."""
        failure = await self._failure(scope) if self._passwords else None
        if failure is None:
            await self._app(scope, receive, send)
            return
        self._counters.auth_failures[failure] += 1
        if failure is AuthFailure.LIMITED:
            headers = {"Retry-After": str(SECONDS_PER_GUESS)}
            refusal = PlainTextResponse("too many wrong passwords from there\n", 429, headers)
        else:
            refusal = PlainTextResponse("user and password, please\n", 401, _CHALLENGE)
        await refusal(scope, receive, send)

    async def _failure(self, scope: Scope) -> AuthFailure | None:
        """Return why the request is refused, or None."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given:
            return AuthFailure.MISSING
        host = (scope["client"] or ("",))[0]
        credentials = parse_credentials(given[0]) if len(given) == 1 else None
        if credentials is None:
            self._report(AuthFailure.WRONG, host, b"")
            return AuthFailure.WRONG
        if self._passwords.remembers(*credentials):
            return None
        source = self._guesses.enter(host)
        try:
            # Counted before the result is known: a source may send many guesses at once.
            if not self._guesses.take(source, self._now()):
                failure = AuthFailure.LIMITED
            elif await self._passwords.verify(*credentials):
                return None
            else:
                failure = AuthFailure.WRONG
        finally:
            self._guesses.leave(source)
        self._report(failure, host, credentials[0])
        return failure

    def _report(self, failure: AuthFailure, host: str, user: bytes) -> None:
        """Log a failure, unless one was logged just before. The log shows only names of known users."""
        self._unlogged += 1
        if self._now() < self._log_due:
            return
        self._log().warning(
            "web authentication failed",
            reason=str(failure),
            source=host,
            user=user.decode() if user in self._passwords else None,
            failures=self._unlogged,
        )
        self._unlogged = 0
        self._log_due = self._now() + SECONDS_PER_LOG_LINE


def parse_credentials(header: bytes) -> tuple[bytes, bytes] | None:
    """Return user and password of an Authorization header (RFC 7617, section 2), or None."""
    scheme, _, token = header.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = base64.b64decode(token.strip(b" "), validate=True).partition(b":")
    except binascii.Error:
        return None
    return (user, password) if colon else None
