"""The flags for reading metrics: what they take, what they need, and that no error shows a password."""

import os
import ssl
from pathlib import Path

import pytest

from tests.helpers.servers import authority
from triojam.cli.flags.metrics import VARIABLE, access_of, metrics_urls
from triojam.errors import ConfigurationError
from triojam.load.readings import Access

PLAIN, SECURED = ["http://a:1/metrics"], ["https://a:1/metrics"]
NOT_SHOWN = "hunter2"


@pytest.fixture(autouse=True)
def _no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a password."""
    path = tmp_path / "password"
    path.write_text(f"{NOT_SHOWN}\n", "utf-8")
    return path


def refusal(caught: pytest.ExceptionInfo[ConfigurationError]) -> str:
    """Return the text of an error, which shows no password."""
    text = str(caught.value)
    assert NOT_SHOWN not in text
    assert "\n" not in text
    return text


def test_urls_are_completed() -> None:
    """Addresses become URLs."""
    assert metrics_urls(["a:1", "https://b/m"]) == ["http://a:1/metrics", "https://b/m"]


@pytest.mark.parametrize(
    "word",
    [
        f"http://ada:{NOT_SHOWN}@a:1",
        f"ada:{NOT_SHOWN}@a:1",
        f"https://ada:{NOT_SHOWN}/x@a:1",
        f"{NOT_SHOWN}@a",
    ],
)
def test_a_password_in_a_url_is_refused(word: str) -> None:
    """A password in the command line is visible to all users of a machine; the error names the right flag."""
    with pytest.raises(ConfigurationError) as caught:
        metrics_urls(["a:1", word])
    assert refusal(caught) == (
        "invalid value for --metrics: expected a URL without user and password:"
        " give them by --metrics-user and --metrics-password-file, or TRIOJAM_METRICS_PASSWORD"
    )


def test_wrong_urls_are_refused() -> None:
    """An address must be one, and each server is given once."""
    with pytest.raises(
        ConfigurationError, match=r"^invalid value 'a:x' for --metrics: expected HOST:PORT or a"
    ):
        metrics_urls(["a:x"])
    with pytest.raises(ConfigurationError, match=r"for --metrics: expected each server only once$"):
        metrics_urls(["a:1", "http://a:1/"])


def test_without_flags_nothing_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a user, the variable with the password does not matter."""
    monkeypatch.setenv(VARIABLE, NOT_SHOWN)
    assert access_of([]) == access_of(PLAIN) == Access()


def test_the_password_comes_from_a_file_or_a_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file wins over the variable; the end of its line does not belong to the password."""
    assert access_of(PLAIN, user="ada", password_file=file) == Access("ada", NOT_SHOWN)
    monkeypatch.setenv(VARIABLE, "other")
    assert access_of(PLAIN, user="ada") == Access("ada", "other")
    for content in (b"a b \r\n", b"a b "):
        file.write_bytes(content)
        assert access_of(PLAIN, user="ada", password_file=file).password == "a b "
    file.write_bytes(b"caf\xe9\x0b\xc2\x85\n")
    assert access_of(PLAIN, user="ada", password_file=file).password == "caf\udce9\x0b\x85"


def test_the_password_may_come_from_a_pipe() -> None:
    """A shell gives the output of a program as a pipe: --metrics-password-file <(pass metrics)."""
    reader, writer = os.pipe()
    os.write(writer, f"{NOT_SHOWN}\n".encode())
    os.close(writer)
    try:
        access = access_of(PLAIN, user="ada", password_file=Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)
    assert access.password == NOT_SHOWN


FILE = "for --metrics-password-file: expected a file whose only line is the password"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "no password"), (b"\n", "no password"), (b"hunter2\nx\n", "more than one line")],
)
def test_a_file_without_one_password_is_refused(file: Path, content: bytes, reason: str) -> None:
    """The file has one line; its content is not shown."""
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        access_of(PLAIN, user="ada", password_file=file)
    assert refusal(caught) == f"invalid value {str(file)!r} {FILE} ({reason})"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file and a folder are refused with the reason."""
    for path, reason in ((tmp_path / "none", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigurationError) as caught:
            access_of(PLAIN, user="ada", password_file=path)
        assert str(caught.value) == f"invalid value {str(path)!r} {FILE} ({reason})"


def test_a_user_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a password, or with an empty one, the error says where to put it."""
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(ConfigurationError) as caught:
            access_of(PLAIN, user="ada")
        assert str(caught.value) == (
            f"--metrics-user needs a password, in --metrics-password-file or the variable {VARIABLE}"
        )


@pytest.mark.parametrize("user", ["", "a:b", "a\nb", "a\udcff"])
def test_a_user_that_cannot_be_sent_is_refused(user: str, file: Path) -> None:
    """Basic authentication ends the name at a colon."""
    with pytest.raises(ConfigurationError, match="for --metrics-user: expected a name without a colon"):
        access_of(PLAIN, user=user, password_file=file)


def test_flags_need_each_other(file: Path) -> None:
    """A flag that would have no effect is refused."""
    for urls, given, text in (
        ([], {"user": "ada"}, "--metrics-user needs --metrics"),
        ([], {"ca": file}, "--metrics-ca needs --metrics"),
        ([], {"password_file": file}, "--metrics-password-file needs --metrics"),
        (PLAIN, {"password_file": file}, "--metrics-password-file needs --metrics-user"),
        (PLAIN, {"ca": file}, "--metrics-ca needs a URL with https in --metrics"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            access_of(urls, **given)
        assert str(caught.value) == text


def test_https_trusts_the_given_certificates_only(file: Path) -> None:
    """With a file of CA certificates, these are trusted and no others; without one, those of the system."""
    file.write_bytes(authority().cert_pem.bytes())
    trusted = access_of([*PLAIN, *SECURED], ca=file).ca
    assert trusted is not None
    assert trusted.verify_mode is ssl.CERT_REQUIRED
    assert trusted.check_hostname
    assert len(trusted.get_ca_certs()) == 1
    usual = access_of(SECURED).ca
    assert usual is not None
    assert usual.verify_mode is ssl.CERT_REQUIRED
    assert usual.get_ca_certs() == ssl.create_default_context().get_ca_certs()


@pytest.mark.parametrize("content", [b"", b"\n", b"no certificate\n", b"\xff"])
def test_a_file_without_certificates_is_refused(file: Path, content: bytes) -> None:
    """A file without certificates must not mean those of the system."""
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="for --metrics-ca: expected a PEM file of CA certificates"):
        access_of(SECURED, ca=file)


def test_a_missing_file_of_certificates_is_named(tmp_path: Path) -> None:
    """The reason is in the error."""
    with pytest.raises(ConfigurationError, match=r"certificates \(no such file or directory\)$"):
        access_of(SECURED, ca=tmp_path / "none")
