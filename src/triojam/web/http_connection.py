"""One HTTP/1.1 connection: h11 speaks the protocol, and every wait and every message has a bound.

A request is answered when it has arrived completely. Nothing is read while it is answered: a client that
sends more must wait, and a client that has ended its sending side gets its answer.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus

import h11
import trio

from triojam.core.reasons import WebRejection

# How long a connection may be silent before its first request, and between two requests. The second is longer
# than usual scrape intervals, so that a scraper keeps its connection.
FIRST_SECONDS, IDLE_SECONDS = 5.0, 75.0
# From the first byte of a request to its end.
REQUEST_SECONDS = 5.0
# For an answer. A scrape takes milliseconds.
SEND_SECONDS = 10.0
# The request line and all headers together.
LONGEST_HEAD = 16 * 1024
RECEIVE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request.

    path, query: of its target, still percent-encoded. host: as the request has it, perhaps with a port.
    headers: by lower-case name; the values of a repeated name are joined with commas.
    source: the client's IP address.
    """

    method: str
    path: str
    query: str = ""
    host: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    status: int = HTTPStatus.OK
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[Request], Awaitable[Response]]

# The end of a request line.
_VERSION = re.compile(rb" HTTP/\d\.\d\r?", re.IGNORECASE)
# The host, and the rest, of a target in absolute-form.
_ABSOLUTE = re.compile(r"https?://([^/?]*)(.*)", re.IGNORECASE)


class _RefusedError(Exception):
    """A request is refused before it is answered."""

    def __init__(self, status: int, text: str, reason: WebRejection) -> None:
        super().__init__(text)
        self.response = Response(status, f"{text}\n".encode())
        self.reason = reason


class HttpConnection:
    """Serves one connection.

    waits: is called with True when the connection begins to wait for a request, and with False when it has a
    whole one. sends: the same, for the client to take an answer. reject: counts a refused request.
    failed: is called while an exception of `answer` is handled. longest_body: of a request, in bytes.
    """

    def __init__(  # noqa: PLR0913  # what a connection needs of its server
        self,
        stream: trio.abc.Stream,
        source: str,
        answer: Answer,
        *,
        waits: Callable[[bool], None],
        sends: Callable[[bool], None],
        reject: Callable[[WebRejection], None],
        failed: Callable[[], None],
        longest_body: int,
    ) -> None:
        self._stream = stream
        self._source = source
        self._answer = answer
        self._waits = waits
        self._sends = sends
        self._reject = reject
        self._failed = failed
        self._longest_body = longest_body
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self._head_only = False  # whether the present request is a HEAD

    async def run(self) -> None:
        """Serve requests until one side ends the connection. Raises what a broken stream raises."""
        patience = FIRST_SECONDS
        while True:
            self._waits(True)  # noqa: FBT003  # its only argument
            try:
                request = await self._receive(patience)
            except _RefusedError as exc:
                self._waits(False)  # noqa: FBT003  # as above
                self._reject(exc.reason)
                await self._send(exc.response, close=True)
                return
            self._waits(False)  # noqa: FBT003  # as above
            if request is None:
                return
            try:
                response = await self._answer(request)
            except Exception:  # noqa: BLE001  # a bug in an answer must not end the server
                self._failed()
                response = Response(500, b"internal error\n")
            await self._send(response)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()
            patience = IDLE_SECONDS

    async def _receive(self, patience: float) -> Request | None:
        """Wait for a whole request; return None if the connection ends first. Raises _RefusedError."""
        self._head_only = False
        begun = bool(self._http.trailing_data[0])
        head: h11.Request | None = None
        body = bytearray()
        try:
            with trio.CancelScope(
                deadline=trio.current_time() + (REQUEST_SECONDS if begun else patience)
            ) as wait:
                while True:
                    event = self._http.next_event()
                    if event is h11.NEED_DATA:
                        data = await self._stream.receive_some(RECEIVE_BYTES)
                        if data and not begun:
                            begun = True
                            wait.deadline = trio.current_time() + REQUEST_SECONDS
                        self._http.receive_data(bytes(data))
                        self._check_first_line()
                    elif isinstance(event, h11.Request):
                        head = event
                        self._head_only = head.method == b"HEAD"
                        self._check(head)
                    elif isinstance(event, h11.Data):
                        body += event.data
                        if len(body) > self._longest_body:
                            raise _too_large()
                    elif isinstance(event, h11.EndOfMessage) and head is not None:
                        return self._read(head, bytes(body))
                    else:  # the end of the stream
                        return None
        except h11.RemoteProtocolError as exc:
            raise _RefusedError(
                exc.error_status_hint, "not a request of HTTP/1.1", WebRejection.BAD_REQUEST
            ) from exc
        if begun:
            raise _RefusedError(408, "the request took too long", WebRejection.TIMEOUT)
        return None

    def _check_first_line(self) -> None:
        """Refuse another protocol as soon as its first line is there: h11 waits for an empty line."""
        if self._http.their_state is not h11.IDLE:
            return
        line, feed, _ = self._http.trailing_data[0].partition(b"\n")
        if feed and not _VERSION.search(line[-len(b" HTTP/1.1\r") :]):
            raise _RefusedError(400, "not a request of HTTP/1.1", WebRejection.BAD_REQUEST)

    def _check(self, head: h11.Request) -> None:
        """Refuse a request that h11 accepts, and this server does not."""
        if not head.http_version.startswith(b"1."):  # an HTTP/2 preface, for example
            raise _RefusedError(505, "this server speaks HTTP/1.1", WebRejection.BAD_REQUEST)
        names = [name for name, _ in head.headers]
        chunked = b"transfer-encoding" in names
        if chunked and b"content-length" in names:  # RFC 9112, 6.1: an attack or a mistake
            raise _RefusedError(400, "both Content-Length and Transfer-Encoding", WebRejection.BAD_REQUEST)
        length = int(dict(head.headers).get(b"content-length", b"0"))
        if (chunked and not self._longest_body) or length > self._longest_body:
            raise _too_large()

    def _read(self, head: h11.Request, body: bytes) -> Request:
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        target, host = head.target.decode("latin-1"), headers.get("host")
        if absolute := _ABSOLUTE.fullmatch(target):  # its host counts, not the header's (RFC 9112, 3.2.2)
            host, target = absolute[1], absolute[2]
        path, _, query = target.partition("?")
        return Request(
            method=head.method.decode("ascii"),
            path=path or "/",
            query=query,
            host=host,
            headers=headers,
            body=body,
            source=self._source,
        )

    async def _send(self, response: Response, *, close: bool = False) -> None:
        headers = {
            "content-type": response.content_type,
            "date": formatdate(usegmt=True),
            "x-content-type-options": "nosniff",
        }
        headers |= {name.lower(): value for name, value in response.headers.items()}
        headers["content-length"] = str(len(response.body))
        if close:
            headers["connection"] = "close"
        reason = HTTPStatus(response.status).phrase.encode("ascii")
        data = self._encode(
            h11.Response(status_code=response.status, headers=[*headers.items()], reason=reason)
        )
        if response.body and not self._head_only:
            data += self._encode(h11.Data(response.body))
        data += self._encode(h11.EndOfMessage())
        self._sends(True)  # noqa: FBT003  # its only argument
        with trio.move_on_after(SEND_SECONDS) as sending:
            await self._stream.send_all(data)
        self._sends(False)  # noqa: FBT003  # as above
        if sending.cancelled_caught:
            self._reject(WebRejection.TIMEOUT)
            raise trio.BrokenResourceError("the client does not take its answer")

    def _encode(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""


def _too_large() -> _RefusedError:
    return _RefusedError(413, "requests here have no body", WebRejection.BODY)
