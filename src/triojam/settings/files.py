"""The files that settings name: certificates, which become TLS contexts, and the password file.

Each file is read as bytes, up to a limit, and an error blames the setting that names the file.
"""

import os
import re
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import tzinfo
from hashlib import sha256
from pathlib import Path
from typing import IO, NamedTuple

from triojam.core.reasons import Listener
from triojam.errors import ConfigurationError, invalid_value
from triojam.settings.certificates import UNKNOWN_END, Certificate, Concern, read_certificate, read_client_ca
from triojam.settings.fields import CERTIFICATE, CLIENT_CA, KEY, PASSWORDS, SettingError, Settings
from triojam.settings.reading import read_bounded
from triojam.settings.zones import read_zone

# Groups of finite fields are left out: with the largest, a client that need not compute anything itself makes
# the server compute for 150 ms (CVE-2022-40735).
GROUPS = "X25519:P-256:P-384"
# The group that every client has, where Python can set only one; OpenSSL's name of P-256.
ONLY_GROUP = "prime256v1"

# Where Linux shows the open descriptors of this process as files.
_DESCRIPTORS = "/proc/self/fd"

# The costs that are taken: 14 is about a second. A cost of minutes would keep every user out.
_LEAST_COST, _MOST_COST = 4, 14
# 16 bytes of salt and 23 of hash in bcrypt's own base64, where two bits of the salt's last letter count.
_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")


class Contexts(NamedTuple):
    """How to encrypt the connections of the time port and of the metrics listener; None = not at all."""

    time: ssl.SSLContext | None = None
    web: ssl.SSLContext | None = None


class Files(NamedTuple):
    """The content of the files.

    hashes: of each user's password. zone: None = the system's. certificate: None if no listener uses TLS, or
    if its validity cannot be read. client_ca: in the same way, the authority of the clients that ends last.
    digests: of the content, by the setting that names the file.
    """

    contexts: Contexts
    hashes: Mapping[bytes, bytes]
    zone: tzinfo | None
    certificate: Certificate | None
    client_ca: Certificate | None
    digests: Mapping[str, bytes]

    def certificate_ends(self) -> dict[Listener, float]:
        """Return when the certificate of each listener that uses TLS ends, in seconds since the epoch."""
        if self.certificate is None:
            return {}
        contexts = {Listener.TIME: self.contexts.time, Listener.METRICS: self.contexts.web}
        return {name: self.certificate.not_after for name, context in contexts.items() if context is not None}

    def concerns(self, now: float) -> list[Concern]:
        """Return what is wrong with the certificates at a moment, in seconds since the epoch."""
        known = [each.concern(now) for each in (self.certificate, self.client_ca) if each is not None]
        unknown = any(self.contexts) and self.certificate is None
        return [each for each in [*known, UNKNOWN_END if unknown else None] if each is not None]


class _PassphraseError(Exception):
    """The key is protected by a passphrase."""


def _read(setting: str, path: str, expected: str) -> bytes:
    try:
        return read_bounded(path)
    except (OSError, ValueError) as exc:  # a path with a NUL is a ValueError
        raise _fault(setting, path, expected, exc) from exc


def _fault(setting: str, path: str, expected: str, why: Exception | str) -> SettingError:
    if isinstance(why, ssl.SSLError):
        why = (why.reason or "not PEM").replace("_", " ").lower()
    elif isinstance(why, OSError):
        why = (why.strerror or str(why)).lower()
    return SettingError(setting, path, f"{expected} ({why})" if path and str(why) else expected)


# Returns the content of the file that a setting names: its name, the path, and what the setting takes.
Read = Callable[[str, str, str], bytes]


def load_files(settings: Settings) -> Files:
    """Read all files that the settings name and the server uses, each of them once.

    Raises ConfigurationError, whatever goes wrong.
    """
    contents: dict[str, bytes] = {}

    def read(setting: str, path: str, expected: str) -> bytes:
        contents[setting] = _read(setting, path, expected)
        return contents[setting]

    try:
        contexts = load_contexts(
            certificate=settings.tls_certificate,
            key=settings.tls_key,
            client_ca=settings.tls_client_ca,
            time=settings.tls_port is not None,
            web=settings.metrics_tls and settings.metrics_port is not None,
            read=read,
        )
        hashes = load_hashes(settings.metrics_passwords, read=read)
        zone, contents["timezone"] = read_zone(settings.timezone)
        certificate = read_certificate(contents["tls_certificate"]) if any(contexts) else None
        client_ca = (
            read_client_ca(contents["tls_client_ca"]) if contexts.time and settings.tls_client_ca else None
        )
        digests = {setting: sha256(content).digest() for setting, content in contents.items()}
        return Files(contexts, hashes, zone, certificate, client_ca, digests)
    except ConfigurationError:
        raise
    except Exception as exc:
        raise cannot_be_read(exc) from exc


def cannot_be_read(exc: Exception) -> ConfigurationError:
    """Make the error for what was not foreseen while files were read."""
    said = f"{type(exc).__name__}: {exc}".removesuffix(": ")
    return ConfigurationError(f"the settings and their files cannot be read: {said}")


def load_contexts(  # noqa: PLR0913  # each is a setting
    *, certificate: str, key: str, client_ca: str, time: bool, web: bool, read: Read = _read
) -> Contexts:
    """Read the files and make the contexts that are asked for.

    certificate, key, client_ca: paths; no key = it stands in the certificate's file, no client_ca = clients
        of the time port need no certificate. read: returns the content of a file.

    Raises SettingError.
    """
    if not (time or web):
        return Contexts()
    chain = read("tls_certificate", certificate, CERTIFICATE)
    _check_certificates(certificate, chain)
    private = read("tls_key", key, KEY) if key else chain
    time_context = _make_context(chain, private, key)
    # Not with the time port's client authority: a scraper is not one of its clients.
    web_context = _make_context(chain, private, key)
    web_context.set_alpn_protocols(["http/1.1"])
    if client_ca:
        trusted = read("tls_client_ca", client_ca, CLIENT_CA)
        _trust(time_context, "tls_client_ca", client_ca, CLIENT_CA, trusted)
        time_context.verify_mode = ssl.CERT_REQUIRED
    return Contexts(time_context if time else None, web_context if web else None)


def load_hashes(path: str, *, read: Read = _read) -> dict[bytes, bytes]:
    """Read the password file: the bcrypt hash of each user. No path, no users.

    Raises SettingError, which says what is wrong with which line, and never shows the line.
    """
    if not path:
        return {}
    content = read("metrics_passwords", path, PASSWORDS)
    try:
        text = content.decode("utf-8-sig")
    except ValueError as exc:
        raise _fault("metrics_passwords", path, PASSWORDS, "not a text file in UTF-8") from exc
    hashes: dict[bytes, bytes] = {}
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line or line.startswith("#"):
            continue
        user, _, hashed = line.partition(":")
        if why := _why_not(user, hashed) or ("a user for the second time" if user.encode() in hashes else ""):
            raise _fault("metrics_passwords", path, PASSWORDS, f"line {number}: {why}")
        hashes[user.encode()] = hashed.encode()
    if not hashes:
        raise _fault("metrics_passwords", path, PASSWORDS, "no users")
    return hashes


def new_context(purpose: ssl.Purpose, trusted: str | None = None) -> ssl.SSLContext:
    """Make a context. trusted: CA certificates as text; None = the system's, for a client.

    Raises ConfigurationError if the environment keeps Python from it, and ssl.SSLError for bad certificates.
    """
    name = "SSLKEYLOGFILE"  # Python opens that file in each context, to write keys for debuggers of traffic
    file = os.environ.get(name, "")
    if file and Path(file).exists() and not Path(file).is_file():  # opening a FIFO would wait for its reader
        raise invalid_value(file, name, "a file that can be written (not a regular file)")
    try:
        return ssl.create_default_context(purpose, cadata=trusted)
    except ssl.SSLError:
        raise
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise invalid_value(file, name, f"a file that can be written ({reason})") from exc


def _make_context(chain: bytes, private: bytes, key: str) -> ssl.SSLContext:
    context = new_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if hasattr(context, "set_groups"):  # Python 3.15
        context.set_groups(GROUPS)
    else:
        context.set_ecdh_curve(ONLY_GROUP)
    # A client may not make the server compute keys again and again on one connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Every line says where it ends: the end of TCP alone is an end, too. OpenSSL 1.1 knows only that way.
    context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    # A ticket comes unasked after the handshake, and unread input turns a client's close into a reset.
    context.num_tickets = 0
    try:
        with _as_file(chain) as chain_path, _as_file(private) as key_path:
            context.load_cert_chain(chain_path, key_path, password=_refuse_passphrase)
    except (ssl.SSLError, _PassphraseError) as exc:
        raise _fault("tls_key", key, KEY, exc) from exc
    return context


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give content a path: OpenSSL reads certificates and keys only from files."""
    if hasattr(os, "memfd_create") and Path(_DESCRIPTORS).exists():  # nothing reaches a disk
        file: IO[bytes] = open(os.memfd_create("triojam"), "wb")  # noqa: PTH123, SIM115  # closed below
        path = f"{_DESCRIPTORS}/{file.fileno()}"
    else:
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115  # closed below
        path = file.name
    with file:
        file.write(content)
        file.flush()
        yield path


def _check_certificates(path: str, chain: bytes) -> None:
    """Look at the certificate's file alone: an error about it and the key does not say which is at fault."""
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "tls_certificate", path, CERTIFICATE, chain)


def _trust(context: ssl.SSLContext, setting: str, path: str, expected: str, content: bytes) -> None:
    try:
        with _as_file(content) as copy:
            context.load_verify_locations(cafile=copy)
    except ssl.SSLError as exc:
        raise _fault(setting, path, expected, exc) from exc


def _refuse_passphrase() -> str:
    """Refuse the request for a passphrase: OpenSSL itself would ask on the terminal."""
    raise _PassphraseError("it is protected by a passphrase")


def _why_not(user: str, hashed: str) -> str:
    if not user or not user.isprintable():
        return "no user before a colon"
    if (match := _HASH.fullmatch(hashed)) is None:
        return "no bcrypt hash after the user and a colon"
    cost = int(match[1])
    return "" if _LEAST_COST <= cost <= _MOST_COST else f"a cost of {cost}"
