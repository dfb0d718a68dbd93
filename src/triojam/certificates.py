"""Makes TLS contexts out of PEM files, and says which file is at fault when that fails."""

import ssl
from pathlib import Path
from typing import NamedTuple

from triojam.settings import CERTIFICATE, CLIENT_CA, KEY, SettingError


class Contexts(NamedTuple):
    """How to encrypt the connections of the time port and of the metrics listener; None = not at all."""

    time: ssl.SSLContext | None = None
    web: ssl.SSLContext | None = None


# Groups of finite fields are left out: with the largest, a client that need not compute anything itself makes
# the server compute for 150 ms (CVE-2022-40735).
GROUPS = "X25519:P-256:P-384"
# The one that every client has, where Python can set no more than one; OpenSSL's name of P-256.
ONLY_GROUP = "prime256v1"


class _PassphraseError(Exception):
    """The key is protected by a passphrase."""


def load(*, certificate: str, key: str, client_ca: str, time: bool, web: bool) -> Contexts:
    """Read the files and make the contexts that are asked for.

    certificate, key, client_ca: paths; no key = it stands in the certificate's file, no client_ca = clients
        of the time port need no certificate.

    Raises SettingError.
    """
    if not (time or web):
        return Contexts()
    time_context = _make_context(certificate, key)
    # Not with the time port's client authority: a scraper is not one of its clients.
    web_context = _make_context(certificate, key)
    web_context.set_alpn_protocols(["http/1.1"])
    if client_ca:
        _check_readable("tls_client_ca", client_ca, CLIENT_CA)
        try:
            time_context.load_verify_locations(cafile=client_ca)
        except ssl.SSLError as exc:
            raise _fault("tls_client_ca", client_ca, CLIENT_CA, exc) from exc
        time_context.verify_mode = ssl.CERT_REQUIRED
    return Contexts(time_context if time else None, web_context if web else None)


def _make_context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
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
    _check_certificates(certificate)
    if key:
        _check_readable("tls_key", key, KEY)
    try:
        context.load_cert_chain(certificate, key or None, password=_refuse_passphrase)
    except (ssl.SSLError, _PassphraseError) as exc:
        raise _fault("tls_key", key, KEY, exc) from exc
    return context


def _check_certificates(path: str) -> None:
    """Look at the certificate's file alone: beside the key's, an error would not say which it is about."""
    _check_readable("tls_certificate", path, CERTIFICATE)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=path)
    except ssl.SSLError as exc:
        raise _fault("tls_certificate", path, CERTIFICATE, exc) from exc


def _check_readable(setting: str, path: str, takes: str) -> None:
    try:
        Path(path).read_bytes()
    except (OSError, ValueError) as exc:  # a path with a NUL is a ValueError
        raise _fault(setting, path, takes, exc) from exc


def _fault(setting: str, path: str, takes: str, exc: Exception) -> SettingError:
    if isinstance(exc, ssl.SSLError):
        why = (exc.reason or "not PEM").replace("_", " ").lower()
    elif isinstance(exc, OSError):
        why = (exc.strerror or str(exc)).lower()
    else:
        why = str(exc)
    return SettingError(setting, path, f"{takes} ({why})" if path and why else takes)


def _refuse_passphrase() -> str:
    """Be asked for a passphrase: OpenSSL itself would ask on the terminal."""
    raise _PassphraseError("it is protected by a passphrase")
