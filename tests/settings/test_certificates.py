"""What is read of a certificate, with those between it and the root."""

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from tests.helpers.program import environment
from tests.helpers.requirements import require_program
from tests.helpers.servers import settings_for_test
from triojam.core.reasons import Listener
from triojam.settings import files
from triojam.settings.certificates import DAY, LONGEST_NAME, UNKNOWN_END, read_certificate, read_client_ca

ENDS = dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
EARLIER = dt.datetime(2029, 1, 1, tzinfo=dt.UTC)


def issue(*names: str, ends: dt.datetime = ENDS) -> bytes:
    """Return a new certificate and its key as PEM."""
    return trustme.CA().issue_cert(*names, not_after=ends).private_key_and_cert_chain_pem.bytes()


def test_a_certificate_has_its_names_and_its_end() -> None:
    """The description has the names, the SHA-256 fingerprint, and the validity in seconds since the epoch."""
    pem = issue("time.example.org", "192.0.2.1")
    found = read_certificate(pem)
    assert found is not None
    assert found.name == "time.example.org, 192.0.2.1"
    assert found.not_after == ENDS.timestamp()
    assert found.not_before == dt.datetime(2000, 1, 1, tzinfo=dt.UTC).timestamp()
    assert found.ends_first == ""
    openssl = [require_program("openssl", "openssl"), "x509", "-noout", "-fingerprint", "-sha256"]
    printed = subprocess.run(openssl, input=pem, capture_output=True, check=True).stdout.decode()
    assert printed.partition("=")[2].strip().replace(":", "").lower() == found.fingerprint


def test_the_earliest_end_of_a_chain_counts() -> None:
    """A client refuses a chain with an expired intermediate; the description names that certificate."""
    found = read_certificate(issue("a.example.org") + issue("b.example.org", ends=EARLIER))
    assert found is not None
    assert (found.name, found.not_after) == ("a.example.org", EARLIER.timestamp())
    assert found.ends_first == "b.example.org"
    concern = found.concern(EARLIER.timestamp() + DAY)
    assert concern is not None
    assert concern.sentence.startswith(
        "b.example.org, in the chain of the TLS certificate for a.example.org,"
    )


@pytest.mark.parametrize(
    ("days", "event", "said"),
    [
        (-20, "tls certificate is not yet valid", "is not valid before 2029-12-23T03:04:05Z"),
        (-14.1, None, ""),
        (-14, "tls certificate ends soon", "ends at 2030-01-02T03:04:05Z, in 14 days"),
        (-0.1, "tls certificate ends soon", "ends at 2030-01-02T03:04:05Z, in 0.1 days"),
        (0.1, "tls certificate has ended", "ended at 2030-01-02T03:04:05Z, 0.1 days ago"),
        (400, "tls certificate has ended", "ended at 2030-01-02T03:04:05Z, 400 days ago"),
    ],
)
def test_a_certificate_causes_concern_before_and_near_and_after(
    days: float, event: str | None, said: str
) -> None:
    """A certificate is a concern before it is valid, in its last 14 days, and after its end."""
    begins = ENDS - dt.timedelta(days=10 if days == -20 else 90)
    leaf = trustme.CA().issue_cert("x", not_before=begins, not_after=ENDS)
    found = read_certificate(leaf.private_key_and_cert_chain_pem.bytes())
    assert found is not None
    concern = found.concern(ENDS.timestamp() + days * DAY)
    if event is None:
        assert concern is None
    else:
        assert concern == (event, f"the TLS certificate for x {said}", found)


def made_by_openssl(folder: Path, *words: str) -> bytes:
    """Return a self-signed certificate and its key, made by openssl."""
    command = [require_program("openssl", "openssl"), "req", "-x509", "-nodes", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "key", "-out", "cert", *words]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return (folder / "cert").read_bytes() + (folder / "key").read_bytes()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-subj", "/CN=old style"], "CN=old style"),
        (["-subj", "/"], "(no name)"),
        (["-subj", "/CN=line\n\x1b[31mfeed"], "CN=line??[31mfeed"),
        (["-subj", "/CN=x", "-set_serial", "-5"], "CN=x"),
        (["-subj", "/CN=x", "-set_serial", "0"], "CN=x"),
        (["-subj", "/CN=x", "-addext", "subjectAltName=DNS:" + "x" * 200], "x" * LONGEST_NAME + "…"),
        (["-subj", "/CN=x", "-addext", "subjectAltName=email:a@example.org"], "a@example.org"),
        (["-subj", "/CN=x", "-addext", "1.2.3.4=critical,DER:ffff"], "CN=x"),
    ],
)
def test_odd_certificates_are_described(words: list[str], name: str, tmp_path: Path) -> None:
    """Whatever OpenSSL takes is served; its name is printable and short, and nothing warns."""
    (tmp_path / "both").write_bytes(made_by_openssl(tmp_path, "-days", "9", *words))
    loaded = files.load_files(settings_for_test(tls_port=0, tls_certificate=str(tmp_path / "both")))
    assert loaded.certificate is not None
    assert loaded.certificate.name == name


def test_a_certificate_of_another_format_has_an_unknown_end(tmp_path: Path) -> None:
    """OpenSSL also takes its own format with trust settings, which the library cannot read."""
    pem = made_by_openssl(tmp_path, "-subj", "/CN=x")
    command = [require_program("openssl", "openssl"), "x509", "-trustout", "-addtrust", "serverAuth"]
    trusted = subprocess.run(command, input=pem, capture_output=True, check=True).stdout
    assert b"TRUSTED" in trusted
    (tmp_path / "both").write_bytes(trusted + (tmp_path / "key").read_bytes())
    loaded = files.load_files(settings_for_test(tls_port=0, tls_certificate=str(tmp_path / "both")))
    assert loaded.contexts.time is not None
    assert loaded.certificate is None
    assert loaded.certificate_ends() == {}
    assert loaded.concerns(0.0) == [UNKNOWN_END]


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"-----BEGIN CERTIFICATE-----\n"])
def test_other_files_have_no_description(content: bytes) -> None:
    """The reader of certificates raises nothing."""
    assert read_certificate(content) is None
    assert read_client_ca(content) is None


@pytest.mark.parametrize(
    ("changes", "listeners"),
    [
        ({"tls_port": 0}, {Listener.TIME}),
        ({"metrics_port": 0, "metrics_tls": True}, {Listener.METRICS}),
        ({"metrics_tls": True}, set()),
        ({"tls_port": 0, "metrics_port": 0, "metrics_tls": True}, set(Listener)),
        ({}, set()),
    ],
)
def test_listeners_with_tls_have_an_end(
    changes: dict[str, object], listeners: set[Listener], tmp_path: Path
) -> None:
    """A listener without TLS has none, although a certificate is set."""
    (tmp_path / "both").write_bytes(issue("x"))
    loaded = files.load_files(settings_for_test(tls_certificate=str(tmp_path / "both"), **changes))
    assert loaded.certificate_ends() == dict.fromkeys(listeners, ENDS.timestamp())


def test_the_library_is_not_loaded_without_tls() -> None:
    """The library takes megabytes: only a server with TLS imports it."""
    script = """
import json, sys
from triojam import Settings
from triojam.settings.files import load_files
load_files(Settings())
print(json.dumps("cryptography" in sys.modules))
"""
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, capture_output=True, check=True, env=environment()).stdout
    assert json.loads(printed) is False
