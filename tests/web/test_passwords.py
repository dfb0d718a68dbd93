"""The file of users and hashes: valid and invalid files, and the check of a password."""

from pathlib import Path

import bcrypt
import pytest
import trio

from tests.cli.test_settings import assert_refused, start
from tests.helpers.servers import until
from triojam.settings.fields import PASSWORDS, SettingError
from triojam.settings.files import load_hashes
from triojam.web.passwords import MOST_WAITING, Passwords

KEY = bytes(32)


def hashed(password: str | bytes, *, cost: int = 4) -> str:
    """Hash like `htpasswd -B`, with a low cost by default."""
    secret = password.encode() if isinstance(password, str) else password
    return "$2y$" + bcrypt.hashpw(secret, bcrypt.gensalt(cost)).decode()[4:]


# The password is "x". The salt is fixed, for the hash is in the names of tests.
GOOD = "alice:$2y$04$HyaWMCRybdW/..hXhXSnfeywn1t59SO9P05RCOnTt6H5D0A6Wy79m"


@pytest.mark.parametrize("version", ["2a", "2b", "2y"])
def test_each_hash_version_is_accepted(version: str, tmp_path: Path) -> None:
    """Each bcrypt version is accepted; comments, empty lines, CRLF and a BOM are ignored; names are UTF-8."""
    line = f"jürgen:${version}${hashed('grün')[4:]}"
    file = tmp_path / "passwords"
    file.write_bytes(f"\ufeff# users\r\n\r\n  {line}  \r\n#bob:x\r\n".encode())
    ((user, hash_),) = load_hashes(str(file)).items()
    assert user == "jürgen".encode()
    assert bcrypt.checkpw("grün".encode(), hash_)


async def test_every_byte_of_a_password_counts() -> None:
    """A password longer than bcrypt's 72 bytes is wrong, and a NUL does not end a password."""
    longest = b"x" * 72
    passwords = Passwords({b"a": hashed(longest).encode(), b"b": hashed("b").encode()}, key=KEY)
    assert await passwords.verify(b"a", longest)
    assert not await passwords.verify(b"a", longest + b"y")
    assert not await passwords.verify(b"b", b"b\0c")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "(no users)"),
        ("# alice\n\n", "(no users)"),
        (f"{GOOD}\n\nbob\n", "(line 3: no bcrypt hash after the user and a colon)"),
        (f"# x\n{GOOD}x", "(line 2: no bcrypt hash"),
        (GOOD[:-1], "(line 1: no bcrypt hash"),
        ("alice:secret", "(line 1: no bcrypt hash"),
        ("alice:$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "(line 1: no bcrypt hash"),
        ("alice:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "(line 1: no bcrypt hash"),
        (GOOD.replace("$04$", "$03$"), "(line 1: a cost of 3)"),
        (GOOD.replace("$04$", "$15$"), "(line 1: a cost of 15)"),
        (GOOD.replace("alice", ""), "(line 1: no user before a colon)"),
        (GOOD.replace("alice", "a\x1bb"), "(line 1: no user before a colon)"),
        (f"{GOOD}\n{GOOD}", "(line 2: a user for the second time)"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_refused(content: str, why: str, tmp_path: Path) -> None:
    """The error has the reason and the line, and no part of the file."""
    file = tmp_path / "passwords"
    file.write_text(content)
    with pytest.raises(SettingError) as caught:
        load_hashes(str(file))
    text = str(caught.value)
    assert text.startswith(f"invalid value {str(file)!r} for metrics_passwords: expected {PASSWORDS} ")
    assert why in text
    for part in ("$04$", "apr1", "SHA", "secret"):
        assert part not in text


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A file that is not UTF-8 and a path with a NUL are errors."""
    file = tmp_path / "passwords"
    file.write_bytes(b"j\xfcrgen:x")
    for path, why in ((str(file), "not a text file in UTF-8"), ("a\0b", "embedded null byte")):
        with pytest.raises(SettingError, match=why):
            load_hashes(path)


def test_a_process_refuses_an_invalid_file(tmp_path: Path) -> None:
    """A server process with such a file writes one line, and exits with status 2."""
    file = tmp_path / "passwords"
    file.write_text(f"{GOOD}\nbob:x\n")
    ended = start("--metrics-passwords", str(file), "--port", "0", "--metrics-port", "0")
    assert_refused(ended, "--metrics-passwords:", str(file), PASSWORDS, "line 2")


async def test_a_user_removed_during_hashing_is_refused() -> None:
    """If a reload removes the user during hashing, the password is wrong, and not remembered."""
    passwords = Passwords({b"alice": hashed("secret", cost=10).encode()}, key=KEY)
    right: list[bool] = []

    async def verify() -> None:
        right.append(await passwords.verify(b"alice", b"secret"))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(verify)
        await until(passwords._hashing.locked)
        passwords.replace({})
    assert right == [False, False]
    assert not passwords.remembers(b"alice", b"secret")


@pytest.mark.parametrize(("password", "right"), [(b"secret", True), (b"x", False)])
async def test_equal_passwords_wait_for_one_hash(
    password: bytes,
    right: bool,  # noqa: FBT001  # a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A password that comes again while its hash is computed costs no other hash, right or wrong."""
    hashings: list[bytes] = []
    checkpw = bcrypt.checkpw

    def check(password: bytes, hashed: bytes) -> bool:
        hashings.append(password)
        return checkpw(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", check)
    passwords = Passwords({b"alice": hashed("secret").encode()}, key=KEY)
    results: list[bool] = []

    async def verify() -> None:
        results.append(await passwords.verify(b"alice", password))

    async with trio.open_nursery() as nursery:
        for _ in range(MOST_WAITING * 2):
            nursery.start_soon(verify)
    assert results == [right] * MOST_WAITING * 2
    assert hashings == [password]


async def test_a_reload_during_hashing_does_not_share_the_old_result() -> None:
    """A password that becomes right by a reload is right at once, even while its old hash is computed."""
    passwords = Passwords({b"alice": hashed("old", cost=10).encode()}, key=KEY)
    results: dict[str, bool] = {}

    async def verify(when: str) -> None:
        results[when] = await passwords.verify(b"alice", b"new")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(verify, "before")
        await until(passwords._hashing.locked)
        passwords.replace({b"alice": hashed("new").encode()})
        nursery.start_soon(verify, "after")
    assert results == {"before": False, "after": True}
    assert not passwords.busy
