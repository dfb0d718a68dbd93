"""The protocol as a table: bytes in on a new connection, answers out, and the counters.

The rules of `verify` judge a server by these rows, and so do the tests of the protocol.
"""

from dataclasses import dataclass, field

from triojam.core.reasons import Disconnect, Rejection

J = "J"  # one time

Answer = str | Rejection


@dataclass(frozen=True)
class Vector:
    """One row.

    sent: the bytes of the client. ended: whether the client then ends its sending side.
    answers: in order, a time or the error line of a reason. end: why the connection ends; None = it stays.
    silent: reasons that are counted without an answer.
    """

    sent: bytes
    answers: tuple[Answer, ...]
    end: Disconnect | None = None
    ended: bool = False
    silent: tuple[Rejection, ...] = field(default=())

    @property
    def rejected(self) -> list[Rejection]:
        """The counted rejections, in order."""
        return [each for each in self.answers if isinstance(each, Rejection)] + list(self.silent)

    @property
    def requests(self) -> int:
        """The number of counted requests."""
        return len(self.answers) + len(self.silent)

    def expected(self, jam: bytes, error_line: dict[Rejection, bytes]) -> bytes:
        """Return the bytes that must come back."""
        return b"".join(error_line[a] if isinstance(a, Rejection) else jam for a in self.answers)


BAD_COMMAND = Rejection.BAD_COMMAND
BAD_TERMINATOR = Rejection.BAD_TERMINATOR
TOO_LONG = Rejection.TOO_LONG

REQUESTS = (
    Vector(b"TIME\r\n", (J,)),
    Vector(b"TIME threading \r\n", (J,)),
    Vector(b"TIMEXYZ\r\n", (J,)),
)
SEVERAL_REQUESTS = (Vector(b"TIME\r\n" * 3, (J,) * 3),)
ODD_BYTES = (
    Vector(b"TIME\xff\r\n", (J,)),
    Vector(b"TIMEX\x00\xff\rY\r\n", (J,)),
    Vector(b"TIME\r\r\n", (J,)),
)
BAD_COMMANDS = (
    Vector(b"HELLO\r\n", (BAD_COMMAND,)),
    Vector(b"time\r\n", (BAD_COMMAND,)),
    Vector(b" TIME\r\n", (BAD_COMMAND,)),
    Vector(b"TIM\r\n", (BAD_COMMAND,)),
    Vector(b"\r\n", (BAD_COMMAND,)),
)
BAD_TERMINATORS = (
    Vector(b"TIME\n", (BAD_TERMINATOR,)),
    Vector(b"\n", (BAD_TERMINATOR,)),
    Vector(511 * b"x" + b"\n", (BAD_TERMINATOR,)),
    Vector(b"\x16\x03\x01\x02\x00\x01\n", (BAD_TERMINATOR,)),
)
BAD_AMONG_GOOD = (
    Vector(b"HELLO\r\nTIME\r\n", (BAD_COMMAND, J)),
    Vector(b"TIME\nTIME\r\n", (BAD_TERMINATOR, J)),
    Vector(b"QUIT\nTIME\r\n", (BAD_TERMINATOR, J)),
    Vector(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", (BAD_COMMAND,) * 3),
)
QUITS = (
    Vector(b"QUIT\r\n", (), Disconnect.QUIT),
    Vector(b"TIME\r\nQUIT\r\nTIME\r\n", (J,), Disconnect.QUIT),
    Vector(b"quit\r\n", (BAD_COMMAND,)),
    Vector(b"QUIT \r\n", (BAD_COMMAND,)),
)
LONG_REQUESTS = (Vector(b"TIME" + 506 * b"x" + b"\r\n", (J,)),)
TOO_LONG_LINES = (
    Vector(b"TIME" + 507 * b"x" + b"\r\n", (TOO_LONG,), Disconnect.TOO_LONG),
    Vector(b"TIME\r\n" + 512 * b"x", (J, TOO_LONG), Disconnect.TOO_LONG),
)
ERROR_BUDGET = (
    Vector(b"x\r\n" * 12, (BAD_COMMAND,) * 10, Disconnect.ERROR_BUDGET),
    Vector(
        b"x\r\n" * 9 + b"TIME\r\n" * 9 + b"x\r\n" * 9, ((BAD_COMMAND,) * 9 + (J,) * 9 + (BAD_COMMAND,) * 9)
    ),
    Vector(
        b"x\r\n" * 9 + b"TIME\r\n" + b"x\r\n" * 9,
        ((BAD_COMMAND,) * 9 + (J,) + (BAD_COMMAND,) * 2),
        Disconnect.ERROR_BUDGET,
    ),
    Vector(b"x\r\n" * 9 + 600 * b"y", (BAD_COMMAND,) * 9 + (TOO_LONG,), Disconnect.TOO_LONG),
)
ENDS = (
    Vector(b"TIME\r\n", (J,), Disconnect.EOF, ended=True),
    Vector(b"", (), Disconnect.EOF, ended=True),
    Vector(b"TIME", (), Disconnect.EOF, ended=True, silent=(Rejection.INCOMPLETE,)),
    Vector(b"TIME\r\nTIM", (J,), Disconnect.EOF, ended=True, silent=(Rejection.INCOMPLETE,)),
)

VECTORS = (
    *REQUESTS,
    *SEVERAL_REQUESTS,
    *ODD_BYTES,
    *BAD_COMMANDS,
    *BAD_TERMINATORS,
    *BAD_AMONG_GOOD,
    *QUITS,
    *LONG_REQUESTS,
    *TOO_LONG_LINES,
    *ERROR_BUDGET,
    *ENDS,
)


def cuts(sent: bytes) -> list[list[bytes]]:
    """Return the cuts of a vector: whole, byte by byte, and in two at each position."""
    whole = [sent] if sent else []
    single = [sent[i : i + 1] for i in range(len(sent))]
    return [whole, single, *([sent[:i], sent[i:]] for i in range(1, len(sent)))]
