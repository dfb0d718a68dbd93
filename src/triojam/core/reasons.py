"""The reasons that counters are labelled with: one enumeration for each label.

The values are the label values of the metrics, the `<reason>` of an `ERROR` line, and the words in the log.
All values are listed here; bytes from a client never become a label value.
"""

from enum import StrEnum


class Rejection(StrEnum):
    """Why a request was not answered with the time."""

    BAD_COMMAND = "bad_command"
    BAD_TERMINATOR = "bad_terminator"
    TOO_LONG = "too_long"
    TIMEOUT = "timeout"
    INCOMPLETE = "incomplete"
    RATE_LIMITED = "rate_limited"
    DRAINING = "draining"


class SendError(StrEnum):
    """Why a time that was due could not be delivered."""

    TIMEOUT = "timeout"
    RESET = "reset"
    SHUTDOWN = "shutdown"


class Refusal(StrEnum):
    """Why a connection was refused before any request."""

    BUSY = "busy"
    PER_SOURCE = "per_source"
    DENIED = "denied"
    PROXY_HEADER = "proxy_header"  # no PROXY header in time, or a bad one


class Disconnect(StrEnum):
    """Why an admitted connection ended."""

    HANDSHAKE = "handshake"  # the TLS handshake failed
    EOF = "eof"
    QUIT = "quit"
    IDLE = "idle"
    LINE_TIMEOUT = "line_timeout"
    SEND_TIMEOUT = "send_timeout"
    RESET = "reset"
    TOO_LONG = "too_long"
    ERROR_BUDGET = "error_budget"
    REJECTED = "rejected"
    DRAIN = "drain"
    INTERNAL_ERROR = "internal_error"


class AcceptError(StrEnum):
    """The errno of a failed accept, by name."""

    EMFILE = "EMFILE"
    ENFILE = "ENFILE"
    ECONNABORTED = "ECONNABORTED"
    OTHER = "other"


class HandoverCause(StrEnum):
    """Why the fast lane handed a client over to the handler."""

    LINE = "line"  # a line that must be rejected, or a QUIT
    SEND = "send"  # answers that the kernel did not take at once
    TIMEOUT = "timeout"  # a line in pieces whose deadline has passed
    EOF = "eof"  # the stream ended within a line
    DRAIN = "drain"  # the server stops
    RATE = "rate"  # the source is beyond its rate
    HEADER = "header"  # a new connection whose PROXY header is not whole yet


class AuthFailure(StrEnum):
    """Why the web listener rejected a request."""

    MISSING = "missing"  # a browser sends its first request without a password
    WRONG = "wrong"
    LIMITED = "limited"  # not checked, because too many passwords were wrong before


class WebRejection(StrEnum):
    """Why the metrics port turned away a connection or a request."""

    BUSY = "busy"  # all places are taken
    PER_SOURCE = "per_source"
    BAD_REQUEST = "bad_request"  # no HTTP/1.1, or headers beyond the limit
    BODY = "body"
    TIMEOUT = "timeout"  # a request or an answer that took too long


class Reload(StrEnum):
    """The result of a SIGHUP."""

    SUCCESS = "success"
    FAILURE = "failure"


class SelfCheck(StrEnum):
    """The result of the server's question to itself, for its watchdog."""

    SUCCESS = "success"
    TIMEOUT = "timeout"  # no answer in time
    CONNECTION = "connection"  # the connection was not opened, or it broke
    WRONG_ANSWER = "wrong_answer"  # an answer that is not the time


class Listener(StrEnum):
    """A listener that can use TLS."""

    TIME = "time"
    METRICS = "metrics"
