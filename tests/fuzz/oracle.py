"""A second implementation of the protocol, from its page: byte by byte, with no code of triojam.

It is slow and simple on purpose: it checks the real one. The reasons are those of the counters.
"""

from dataclasses import dataclass, field

JAM = "JAM"


@dataclass(frozen=True)
class Law:
    """The rules of a connection: the longest line, the error budget, and an ERROR line or only a close."""

    limit: int = 512
    budget: int = 10
    reply: bool = True


@dataclass
class Oracle:
    """One connection. Its methods say what happens to it.

    answers: the expected answers in order: JAM, or the reason of an ERROR line. rejected: reasons and lines.
    end: why the connection ends; later events change nothing.
    tokens: how many more lines its source may send; None = no limit.
    """

    law: Law
    tokens: int | None = None
    answers: list[str] = field(default_factory=list)
    requests: int = 0
    rejected: list[tuple[str, bytes]] = field(default_factory=list)
    end: str | None = None
    line: bytearray = field(default_factory=bytearray)
    bad: int = 0

    def receive(self, data: bytes) -> None:
        """Bytes came."""
        for value in data:
            if self.end is None:
                self.line.append(value)
                self._look_at_the_line()

    def end_of_stream(self) -> None:
        """The client ended its sending side."""
        if self.line:
            self._reject("incomplete", told=False)
        self.end = "eof"

    def line_timeout(self) -> None:
        """The line did not end in time."""
        self._reject("timeout", told=self.law.reply)
        self.end = "line_timeout"

    def drain(self, *, told: bool = True) -> None:
        """The server stops waiting; `told`: it still sends the ERROR line."""
        if self.line:
            self._reject("draining", told=told and self.law.reply)
        self.end = "drain"

    def _look_at_the_line(self) -> None:
        whole = self.line[-1:] == b"\n"
        if self.law.limit and len(self.line) + (not whole) > self.law.limit:
            self._reject("too_long", told=self.law.reply)
            self.end = "too_long"
        elif whole and self.line == b"QUIT\r\n":
            self.end = "quit"
        elif whole and self.tokens == 0:
            self._reject("rate_limited", told=self.law.reply)
        elif whole:
            self.tokens = self.tokens and self.tokens - 1
            self._look_at_what_it_says()

    def _look_at_what_it_says(self) -> None:
        if self.line[-2:] != b"\r\n":
            self._reject("bad_terminator", told=self.law.reply)
        elif self.line[:4] == b"TIME":
            self.requests += 1
            self.answers.append(JAM)
            self.bad = max(self.bad - 1, 0)
            self.line.clear()
        else:
            self._reject("bad_command", told=self.law.reply)

    def _reject(self, reason: str, *, told: bool) -> None:
        self.requests += 1
        longest = self.law.limit if reason == "too_long" else None
        self.rejected.append((reason, bytes(self.line.removesuffix(b"\n")[:longest])))
        self.line.clear()
        self.bad += 1
        if told:
            self.answers.append(reason)
        if not self.law.reply:
            self.end = "rejected"
        elif self.law.budget and self.bad >= self.law.budget:
            self.end = "error_budget"
