"""Basic authentication (RFC 7617) in front of the answers of the metrics port.

Guesses are limited per source, before any hashing. A password that was verified before passes without that
limit: an attacker with the same address as a scraper, or behind the same proxy, cannot lock the scraper out.
"""

import base64
import binascii
from collections.abc import Callable

import trio
from structlog.typing import FilteringBoundLogger

from triojam.core.admission import Admission, Policy, Source
from triojam.core.counters import Counters
from triojam.core.reasons import AuthFailure
from triojam.core.seldom import Seldom
from triojam.web.http_connection import Answer, Request, Response
from triojam.web.passwords import Passwords

# Enough for typing errors. After these, a source has 8,640 guesses a day.
GUESSES_AT_ONCE = 10
SECONDS_PER_GUESS = 10
# The most passwords of one source that are hashed or wait for that: the others are for other sources.
MOST_A_SOURCE = 2
# Failures can be frequent, so they share lines of the log.
SECONDS_PER_LOG_LINE = 10.0

_CHALLENGE = {"WWW-Authenticate": 'Basic realm="triojam", charset="UTF-8"'}


class BasicAuth:
    """Passes requests with a right password on to `answer`; without any passwords, all requests.

    log: returns the logger. now: returns seconds; any clock will do.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        passwords: Passwords,
        counters: Counters,
        log: Callable[[], FilteringBoundLogger],
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self._answer = answer
        self._passwords = passwords
        self._counters = counters
        self._log = log
        self._now = now
        self._guesses = Admission(
            Policy(rate_per_source=1 / SECONDS_PER_GUESS, burst_per_source=GUESSES_AT_ONCE)
        )
        self._told = Seldom(SECONDS_PER_LOG_LINE)

    async def answer(self, request: Request) -> Response:
        """Answer one request: 401 without a right password, 429 after too many guesses."""
        failure = await self._failure(request) if self._passwords else None
        if failure is None:
            return await self._answer(request)
        self._counters.auth_failures[failure] += 1
        if failure is AuthFailure.LIMITED:
            headers = {"Retry-After": str(SECONDS_PER_GUESS)}
            return Response(429, b"too many wrong passwords from there\n", headers=headers)
        return Response(401, b"user and password, please\n", headers=_CHALLENGE)

    async def _failure(self, request: Request) -> AuthFailure | None:
        """Return why the request is refused, or None."""
        given = request.headers.get("authorization")
        if given is None:
            return AuthFailure.MISSING
        credentials = parse_credentials(given.encode("latin-1"))
        if credentials is None:
            self._report(AuthFailure.WRONG, request.source, b"")
            return AuthFailure.WRONG
        if self._passwords.remembers(*credentials):
            return None
        source = self._guesses.enter(request.source)
        try:
            if not self._passwords.checking(*credentials) and not self._may_guess(source):
                failure = AuthFailure.LIMITED
            elif await self._passwords.verify(*credentials):
                return None
            else:
                failure = AuthFailure.WRONG
        finally:
            self._guesses.leave(source)
        self._report(failure, request.source, credentials[0])
        return failure

    def _may_guess(self, source: Source) -> bool:
        """Whether a source may have one more password hashed, which costs it a token."""
        if self._passwords.busy or source.connections > MOST_A_SOURCE:
            return False
        # Before the result is known: a source may send many guesses at once.
        return self._guesses.take(source, self._now())

    def _report(self, failure: AuthFailure, host: str, user: bytes) -> None:
        """Log a failure, unless one was logged just before. The log shows only names of known users."""
        if failures := self._told.count(self._now()):
            self._log().warning(
                "web authentication failed",
                reason=str(failure),
                source=host,
                user=user.decode() if user in self._passwords else None,
                failures=failures,
            )


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
