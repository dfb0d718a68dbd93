"""What a failed handshake of TLS means: the alerts of a server, as OpenSSL names them."""

import re
import ssl

WANTED = "wants a client certificate: try it with --cert"

# The alerts of RFC 8446, section 6.2, that are about a certificate which the client has sent.
_REFUSED = re.compile(
    "ALERT_(BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|CERTIFICATE_(REVOKED|EXPIRED|UNKNOWN)|UNKNOWN_CA"
    "|ACCESS_DENIED|DECRYPT_ERROR)"
)


def meaning_of(error: ssl.SSLError) -> tuple[bool, str]:
    """Return whether an error is about the client's certificate, and what to say."""
    reason = error.reason or ""
    if "CERTIFICATE_REQUIRED" in reason:
        return True, WANTED
    if "ALERT_HANDSHAKE_FAILURE" in reason:  # in TLS 1.2, the alert has no better reason
        return True, f"refuses the TLS handshake; perhaps it {WANTED}"
    if match := _REFUSED.search(reason):
        what = match[1].replace("_", " ").lower()
        if what == "bad certificate":  # the alert of some servers if there is none
            return True, "wants another client certificate than it got, or any: see --cert"
        return True, f"does not accept the client certificate ({what})"
    if "ALERT_PROTOCOL_VERSION" in reason:
        return False, "speaks only another version of TLS"
    return False, "does not speak TLS, or only an unsafe version"
