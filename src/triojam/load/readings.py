"""Reads the counters of a server from its metrics, over HTTP."""

import base64
import http.client
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field, fields
from typing import IO, NoReturn

import trio
from prometheus_client.parser import text_string_to_metric_families

from triojam.client.wire.alerts import meaning_of

READ_TIMEOUT = 5.0
LONGEST_PAGE = 4_000_000

_COUNTERS = {
    "triojam_requests_total": "requests",
    "triojam_responses_total": "responses",
    "triojam_rejected_total": "rejected",
    "triojam_response_send_errors_total": "send_errors",
}
_STARTED = "process_start_time_seconds"
_SAMPLES = (*_COUNTERS, _STARTED)
_LONGEST_REASON = 300
# Errors of OpenSSL that another set of CA certificates can mend: the issuer is missing or not trusted.
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)


class MetricsError(Exception):
    """The metrics cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The counters of one process, or sums over several."""

    requests: int = 0
    responses: int = 0
    rejected: int = 0
    send_errors: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Counts)))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(Counts)))

    @property
    def unaccounted(self) -> int:
        """Requests in no other counter."""
        return self.requests - self.responses - self.rejected - self.send_errors


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of the metrics. process: when the process started, which identifies it; 0 = not known."""

    process: float
    counts: Counts


@dataclass(frozen=True, slots=True)
class Access:
    """What a server may want before it shows its metrics.

    user, password: for Basic authentication, if there is a user. ca: a context that trusts certain CA
    certificates; None = those of the system.
    """

    user: str | None = None
    password: str = field(default="", repr=False)
    ca: ssl.SSLContext | None = None


OPEN = Access()


class Page:
    """The metrics of one server."""

    def __init__(self, url: str, access: Access = OPEN) -> None:
        self._url = url
        self._access = access
        # Without the proxies of the environment: they are for the web, and the load does not use them either.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirects()]
        if access.ca is not None:
            handlers.append(urllib.request.HTTPSHandler(context=access.ca))
        self._opener = urllib.request.build_opener(*handlers)
        # A thread cannot be cancelled; a server that sends a byte now and then must not collect threads.
        self._one_thread = trio.CapacityLimiter(1)

    async def read(self) -> Reading:
        """Read the counters once. Raises MetricsError."""
        with trio.move_on_after(READ_TIMEOUT):
            return await trio.to_thread.run_sync(self._read, abandon_on_cancel=True, limiter=self._one_thread)
        raise MetricsError(f"{self._url}: not read within {READ_TIMEOUT:g} s")

    def _read(self) -> Reading:
        request = urllib.request.Request(self._url)  # noqa: S310  # metrics_url allows only http and https
        if self._access.user is not None:
            credentials = f"{self._access.user}:{self._access.password}".encode(errors="surrogateescape")
            request.add_header("Authorization", "Basic " + base64.b64encode(credentials).decode())
        try:
            with self._opener.open(request, timeout=READ_TIMEOUT) as response:
                return parse(_whole(response))
        except (OSError, ValueError, OverflowError, http.client.HTTPException) as exc:
            raise MetricsError(f"{self._url}: {self._reason(exc)}") from exc

    def _reason(self, exc: Exception) -> str:
        """Say why the metrics cannot be read. The server's own words are not trusted to be printable."""
        if isinstance(exc, urllib.error.HTTPError):
            exc.close()
            user = self._access.user
            if exc.code != http.HTTPStatus.UNAUTHORIZED:
                text = f"answers {exc.code} {exc.reason}"
            elif user is None:
                text = "wants a user and a password: see --metrics-user"
            else:
                text = f"does not accept the password of {user}"
        elif isinstance(exc, http.client.RemoteDisconnected) and self._url.startswith("http:"):
            text = "closed the connection without an answer; if it speaks TLS, give a URL with https"
        elif isinstance(exc, http.client.BadStatusLine):
            text = "does not speak HTTP"
        else:
            text = _meaning(exc)
        line = " ".join(text.split())[:_LONGEST_REASON]
        return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the password, and the trust in the counters, are for the given server only."""

    def redirect_request(self, _request: object, answer: IO[bytes], *more: object) -> NoReturn:
        """Name the other URL in an error."""
        answer.close()
        raise ValueError(f"redirects to {more[-1]}: give that URL, if you trust it")


def _whole(response: http.client.HTTPResponse) -> str:
    """Return the page. Raises ValueError if it is too long, or ends too early."""
    body = response.read(LONGEST_PAGE + 1)
    if len(body) > LONGEST_PAGE:
        raise ValueError(f"longer than {LONGEST_PAGE:,} bytes")
    if response.length:
        raise ValueError("the connection ended before the page did")
    return body.decode()


def _meaning(exc: Exception) -> str:
    reason = getattr(exc, "reason", exc) if isinstance(exc, urllib.error.URLError) else exc
    if isinstance(reason, ssl.SSLCertVerificationError):
        hint = ": see --metrics-ca" if reason.verify_code in _UNKNOWN_ISSUER else ""
        return f"its certificate is not trusted: {reason.verify_message.rstrip('.')}{hint}"
    if isinstance(reason, ssl.SSLError):
        wants_certificate, text = meaning_of(reason)
        return "wants a client certificate, and load has none for metrics" if wants_certificate else text
    if isinstance(reason, TimeoutError):
        return f"not read within {READ_TIMEOUT:g} s"
    return str(getattr(reason, "strerror", None) or reason)


def parse(page: str) -> Reading:
    """Return the counters in a page of metrics. Raises ValueError.

    Only the lines of the needed samples are parsed, which takes a tenth of the time. In these lines,
    OpenMetrics has the syntax of the text format, and what it may have behind the value is ignored.
    """
    lines = [line for line in page.split("\n") if line.lstrip().startswith(_SAMPLES)]
    if lines and not page.endswith("\n"):
        raise ValueError("the page of metrics is cut off")
    sums: dict[str, int] = {}
    process = 0.0
    for family in text_string_to_metric_families("\n".join(lines)):
        for sample in family.samples:
            if counter := _COUNTERS.get(sample.name):
                sums[counter] = sums.get(counter, 0) + int(sample.value)
            elif sample.name == _STARTED:
                process = sample.value
    if not sums:
        raise ValueError("these are not triojam's metrics")
    for name, counter in _COUNTERS.items():
        if counter not in sums:
            raise ValueError(f"these metrics do not have {name}")
    return Reading(process, Counts(**sums))


def metrics_url(text: str) -> str:
    """Complete an address of metrics, such as HOST:PORT. Raises ValueError that says what is expected."""
    expected = "HOST:PORT or a URL such as http://HOST:45001/metrics"
    try:
        url = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # of a port or of brackets; its text is about a part of the URL
        usable = False
    if not usable or not text.isprintable() or " " in text:
        raise ValueError(expected)
    return url._replace(path=url.path if url.path not in ("", "/") else "/metrics", fragment="").geturl()
