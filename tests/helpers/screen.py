"""What stands on a terminal: a pseudo-terminal, and an emulator of the few sequences that rich uses."""

import fcntl
import os
import pty
import re
import struct
import termios

import trio

# A control sequence of ECMA-48: parameters, and the letter that says what it does.
_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Screen:
    """The lines of a terminal, which never scroll out. Raises AssertionError for what it does not know."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._lines = [""]
        self._row = self._column = 0
        self._undecoded = b""

    def feed(self, data: bytes) -> None:
        """Draw what a program has written."""
        data = self._undecoded + data
        # A character or a sequence may have come in part.
        whole = len(data)
        if (start := data.rfind(b"\x1b")) >= 0 and not re.match(rb"\x1b\[[?0-9;]*[A-Za-z]", data[start:]):
            whole = start
        while whole:
            try:
                text = data[:whole].decode()
            except UnicodeDecodeError as exc:
                whole = exc.start
            else:
                break
        else:
            text = ""
        self._undecoded = data[whole:]
        self._draw(text)

    def text(self) -> str:
        """Return the lines, without spaces at their ends."""
        return "\n".join(line.rstrip() for line in self._lines).rstrip("\n")

    def _draw(self, text: str) -> None:
        place = 0
        while place < len(text):
            if sequence := _SEQUENCE.match(text, place):
                self._obey(sequence[1], sequence[2])
                place = sequence.end()
                continue
            character = text[place]
            place += 1
            if character == "\r":
                self._column = 0
            elif character == "\n":
                self._next_row()
            else:
                assert character.isprintable(), repr(character)
                if self._column == self._columns:  # it wraps only when the next character comes
                    self._column = 0
                    self._next_row()
                line = self._lines[self._row].ljust(self._column)
                self._lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
                self._column += 1

    def _next_row(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append("")

    def _obey(self, parameters: str, letter: str) -> None:
        if letter == "A":
            self._row = max(0, self._row - int(parameters or 1))
        elif letter == "K":
            line = self._lines[self._row]
            self._lines[self._row] = "" if parameters == "2" else line[: self._column]
        else:
            assert letter == "m" or parameters.startswith("?"), parameters + letter


def open_terminal(columns: int, rows: int = 24) -> tuple[int, int]:
    """Open a terminal of this size; return the end of the screen and the end of a program."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return ours, theirs


async def draw_until(stream: trio.lowlevel.FdStream, screen: Screen, pattern: str) -> None:
    """Read what a program draws until the pattern is on the screen."""
    while not re.search(pattern, screen.text()):
        data = await stream.receive_some()
        assert data, screen.text()
        screen.feed(data)


def type_text(descriptor: int, text: str) -> None:
    """Type on the terminal, which echoes it."""
    os.write(descriptor, text.encode())
