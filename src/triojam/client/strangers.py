"""What a server speaks that closes a connection in clear without an answer: perhaps TLS."""

import ssl

from triojam.client.session import AskError, ClosedError, Session, StrangerError, Target, connect

_PROBE_SECONDS = 2.0


async def explain(exc: AskError, session: Session, target: Target) -> AskError:
    """Return the error that says what the server speaks, if it does a TLS handshake; else the same error."""
    if isinstance(exc, ClosedError) and not session.heard and await _speaks_tls(target):
        return StrangerError("speaks TLS: try it with --tls")
    return exc


async def _speaks_tls(target: Target) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent, and nothing is believed
    try:
        async with await connect(target, patience=_PROBE_SECONDS, tls=context):
            return True
    except AskError:
        return False
