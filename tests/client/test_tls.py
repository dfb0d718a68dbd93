"""The clients over TLS: names, client certificates, and what a server wants."""

import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

import triojam
from tests.helpers.bad_servers import start_bad, tells
from tests.helpers.servers import (
    NOW,
    PATIENCE,
    authority,
    start_tls,
    trusting,
)
from triojam.client.ask import AskOptions
from triojam.client.session import Target
from triojam.client.wire.alerts import meaning_of


async def wanting(nursery: trio.Nursery, tmp_path: Path, clients: trustme.CA) -> Target:
    """Start a server that wants client certificates of an authority."""
    file = tmp_path / "clients.pem"
    clients.cert_pem.write_to_path(str(file))
    server = await start_tls(nursery, tls_client_ca=str(file))
    assert server.server is not None
    return Target("localhost", int(server.server.tls_addresses[0][1]))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("precise", [False, True])
async def test_a_server_that_wants_a_client_certificate_is_named(
    nursery: trio.Nursery,
    tmp_path: Path,
    version: ssl.TLSVersion,
    precise: bool,  # noqa: FBT001  # a parameter
) -> None:
    """Without a certificate, and with one of another authority, the reason is the certificate."""
    clients = trustme.CA()
    target = await wanting(nursery, tmp_path, clients)
    for issuer, words in (
        (None, "wants a client certificate: try it with --cert"),
        (authority(), "does not accept the client certificate"),
        (clients, None),
    ):
        context = trusting()
        context.maximum_version = version
        if issuer is not None:
            issuer.issue_cert("client@example.org").configure_cert(context)
        outcome = await AskOptions(precise=precise, patience=PATIENCE, tls=context).ask(target)
        if words is None:
            assert not isinstance(outcome, triojam.UntrustedError)
            assert precise or isinstance(outcome, triojam.Answer)  # the clock of the server stands still
        else:
            assert isinstance(outcome, triojam.UntrustedError)
            assert words in str(outcome)


async def test_the_name_in_the_certificate_can_be_given(nursery: trio.Nursery) -> None:
    """With a server name, the certificate is checked for that name, whatever the address is."""
    server = await start_tls(nursery)
    assert server.server is not None
    target = Target("127.0.0.1", int(server.server.tls_addresses[0][1]))
    ask = partial(AskOptions, tls=trusting())
    assert isinstance(await ask(name="localhost").ask(target), triojam.Answer)
    wrong = await ask(name="time.example.org").ask(target)
    assert isinstance(wrong, triojam.UntrustedError)
    assert "time.example.org" in str(wrong)


async def test_a_server_in_clear_does_not_speak_tls(nursery: trio.Nursery) -> None:
    """A server without TLS is not taken for one that wants a certificate."""
    outcome = await AskOptions(tls=trusting()).ask(Target(*await start_bad(nursery, tells(lambda: NOW))))
    assert isinstance(outcome, triojam.StrangerError)
    assert str(outcome) == "does not speak TLS, or only an unsafe version"


@pytest.mark.parametrize(
    ("reason", "about_certificate", "words"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True, "wants a client certificate: try it with --cert"),
        (
            "SSLV3_ALERT_HANDSHAKE_FAILURE",
            True,
            "refuses the TLS handshake; perhaps it wants a client certificate: try it with --cert",
        ),
        (
            "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            True,
            "does not accept the client certificate (certificate expired)",
        ),
        (
            "SSLV3_ALERT_BAD_CERTIFICATE",
            True,
            "wants another client certificate than it got, or any: see --cert",
        ),
        ("TLSV1_ALERT_UNKNOWN_CA", True, "does not accept the client certificate (unknown ca)"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", False, "speaks only another version of TLS"),
        ("WRONG_VERSION_NUMBER", False, "does not speak TLS, or only an unsafe version"),
    ],
)
def test_an_alert_has_a_meaning(reason: str, about_certificate: bool, words: str) -> None:  # noqa: FBT001  # a parameter
    """Each alert is about the client's certificate, or about TLS itself."""
    error = ssl.SSLError()
    error.reason = reason
    assert meaning_of(error) == (about_certificate, words)
