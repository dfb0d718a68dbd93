"""The client's side of TLS on one connection, without its socket."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from triojam.client.wire.alerts import meaning_of

_PIECE = 64 * 1024


class TlsError(Exception):
    """TLS has failed; the text is the cause by which that is counted."""


@dataclass(frozen=True)
class Trust:
    """What a process needs to make a context of its own.

    name: that of the server. authorities: certificates (PEM) to trust; None = those of the system. identity:
    the files of a client certificate and its key.
    """

    name: str
    authorities: str | None = None
    identity: tuple[Path, Path | None] | None = None

    def context(self) -> ssl.SSLContext:
        """Make the context. Raises OSError or ValueError if a file has changed since it was checked."""
        context = ssl.create_default_context(cadata=self.authorities)
        if self.identity is not None:
            context.load_cert_chain(*self.identity)
        return context


class Tls:
    """Encrypts and decrypts. ready: whether the handshake is done."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "ready")

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self.ready = False
        self._shake_hands()

    def encrypt(self, data: bytes) -> bytes:
        """Return the records of some bytes. Raises TlsError."""
        try:
            self._tls.write(data)
        except ssl.SSLError as exc:
            raise TlsError(_cause(exc)) from exc
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """Return the bytes in these records, and whether the server has ended TLS. Raises TlsError."""
        self._incoming.write(data)
        pieces: list[bytes] = []
        if not self._shake_hands():
            return b"", False
        try:
            while piece := self._tls.read(_PIECE):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(pieces), False
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as exc:
            if not pieces:
                raise TlsError(_cause(exc)) from exc
        return b"".join(pieces), True

    def replies(self) -> bytes:
        """Return what TLS itself has to send: the handshake, or the answer to a change of keys."""
        return self._outgoing.read()

    def _shake_hands(self) -> bool:
        """Go on with the handshake; return whether it is done."""
        if not self.ready:
            try:
                self._tls.do_handshake()
                self.ready = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as exc:
                raise TlsError(_cause(exc)) from exc
        return self.ready


def _cause(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {exc.verify_message}"
    return meaning_of(exc)[1]
