"""What is known of a certificate: its name, its fingerprint, and when it is valid."""

import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptography import x509

# A name is shown in a log line; a certificate may have hundreds.
LONGEST_NAME = 100
# Time to renew a certificate by hand, or to find out why it was not renewed.
SOON_DAYS = 14
DAY = 86_400.0  # seconds


# What a certificate is for: the first words of its events in the log, and of its sentences.
SERVER, CLIENT_CA = "tls certificate", "tls client ca"
_SUBJECTS = {SERVER: "the TLS certificate for {}", CLIENT_CA: "{}, the last certificate of tls_client_ca,"}


class Certificate(NamedTuple):
    """The server's certificate, with those between it and the root, or the authority of its clients.

    name: the names that it is for, or its subject. fingerprint: SHA-256, in hexadecimal.
    not_before, not_after: when all certificates of the chain are valid, in seconds since the epoch.
    ends_first: the name of the certificate that ends first, if it is not the server's own.
    """

    name: str
    fingerprint: str
    not_before: float
    not_after: float
    ends_first: str = ""
    role: str = SERVER

    @property
    def ends(self) -> str:
        """The end in UTC, as in ISO 8601."""
        return _iso(self.not_after)

    def days_left(self, now: float) -> float:
        """Return the days until the end, to one decimal; below 0 after the end."""
        return round((self.not_after - now) / DAY, 1) + 0.0  # no -0.0

    def concern(self, now: float) -> "Concern | None":
        """Return what is wrong with the certificate at a moment, in seconds since the epoch."""
        subject = _SUBJECTS[self.role].format(self.name)
        if now < self.not_before:
            sentence = f"{subject} is not valid before {_iso(self.not_before)}"
            return Concern(f"{self.role} is not yet valid", sentence, self)
        days = self.days_left(now)
        if self.ends_first:
            subject = f"{self.ends_first}, in the chain of {subject},"
        if now > self.not_after:
            return Concern(
                f"{self.role} has ended", f"{subject} ended at {self.ends}, {_counted(-days)} ago", self
            )
        if days <= SOON_DAYS:
            return Concern(
                f"{self.role} ends soon", f"{subject} ends at {self.ends}, in {_counted(days)}", self
            )
        return None


class Concern(NamedTuple):
    """What is wrong with a certificate. event: its name in the log. sentence: for people."""

    event: str
    sentence: str
    certificate: Certificate | None = None


# OpenSSL takes some certificates that the library does not.
UNKNOWN_END = Concern("tls certificate's end is unknown", "the end of the TLS certificate cannot be read")


def read_certificate(chain: bytes) -> Certificate | None:
    """Describe the first certificate of a PEM file, and the validity of all; None if that cannot be read."""
    try:
        own, *others = certificates = _load(chain)
        first = min(certificates, key=_end)
        described = _describe(own, SERVER)
        return described._replace(
            not_before=max(each.not_valid_before_utc.timestamp() for each in certificates),
            not_after=_end(first),
            ends_first=_name(first) if first in others else "",
        )
    except Exception:  # noqa: BLE001  # each library has its own idea of a bad certificate
        return None


def read_client_ca(content: bytes) -> Certificate | None:
    """Describe the certificate of a PEM file that ends last; None if that cannot be read.

    The file may have an old authority and the new one: the end of the old one does not matter.
    """
    try:
        return _describe(max(_load(content), key=_end), CLIENT_CA)
    except Exception:  # noqa: BLE001  # as above
        return None


def _load(content: bytes) -> "list[x509.Certificate]":
    # A server without TLS does not need the library, which takes some megabytes.
    from cryptography import x509  # noqa: PLC0415  # see above

    with warnings.catch_warnings():  # a serial number of 0, for example
        warnings.simplefilter("ignore")
        return x509.load_pem_x509_certificates(content)


def _describe(certificate: "x509.Certificate", role: str) -> Certificate:
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415  # as above

    return Certificate(
        name=_name(certificate),
        fingerprint=certificate.fingerprint(SHA256()).hex(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=_end(certificate),
        role=role,
    )


def _end(certificate: "x509.Certificate") -> float:
    return certificate.not_valid_after_utc.timestamp()


def _name(certificate: "x509.Certificate") -> str:
    from cryptography import x509  # noqa: PLC0415  # see above

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        text = ", ".join(str(each.value) for each in names)
    except Exception:  # noqa: BLE001  # there are none, or they cannot be read
        text = certificate.subject.rfc4514_string()
    text = "".join(each if each.isprintable() else "?" for each in text)
    return f"{text[:LONGEST_NAME]}…" if len(text) > LONGEST_NAME else text or "(no name)"


def _counted(days: float) -> str:
    return f"{days:g} day" + ("" if days == 1 else "s")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
