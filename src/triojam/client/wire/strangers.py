"""Why a server closes a connection without an answer: it may speak TLS, or want a client certificate."""

import ssl

from triojam.client.session import (
    AskError,
    ClosedError,
    Session,
    StrangerError,
    Target,
    UntrustedError,
    connect,
)

_PROBE_SECONDS = 2.0


async def explain(
    exc: AskError, session: Session, target: Target, tls: ssl.SSLContext | None, name: str | None = None
) -> AskError:
    """Return the error that says more, if another connection shows it; else the same error."""
    if not isinstance(exc, ClosedError) or session.heard:
        return exc
    if tls is not None:
        return await _refusal(target, tls, name) or exc
    return StrangerError("speaks TLS: try it with --tls") if await _speaks_tls(target) else exc


async def _speaks_tls(target: Target) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent, and nothing is believed
    try:
        async with await connect(target, patience=_PROBE_SECONDS, tls=context):
            return True
    except UntrustedError:  # it wants a client certificate
        return True
    except AskError:
        return False


async def _refusal(target: Target, tls: ssl.SSLContext, name: str | None) -> UntrustedError | None:
    """Return why the server refuses the client's certificate.

    In TLS 1.3 the client is done before the server has checked it. A request that is on its way then makes
    the kernel reset the connection, and the alert is lost. So this connection sends none.
    """
    try:
        async with await connect(target, patience=_PROBE_SECONDS, tls=tls, name=name) as session:
            await session.listen(_PROBE_SECONDS)
    except UntrustedError as exc:
        return exc
    except AskError:
        pass
    return None
