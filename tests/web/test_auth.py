"""Basic authentication of the web listener: access, its cost, and its effect on the time service."""

import base64
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import bcrypt
import pytest
import trio

from tests.conftest import Start
from tests.helpers.program import serving
from tests.helpers.scrape import Address, Reply, fetch, scrape
from tests.helpers.servers import JAM, PATIENCE, Events, Running, receive_all, start_tcp, until
from tests.web.test_passwords import GOOD, KEY, hashed
from tests.web.test_routes import PATHS, web_of
from triojam.core.counters import Counters
from triojam.core.reasons import AuthFailure
from triojam.settings.files import load_hashes
from triojam.web.auth import GUESSES_AT_ONCE, MOST_A_SOURCE, SECONDS_PER_GUESS, BasicAuth, parse_credentials
from triojam.web.http_connection import Request, Response
from triojam.web.http_server import GRACEFUL_SECONDS, MOST_CONNECTIONS
from triojam.web.passwords import MOST_WAITING, Passwords

ALICE, BOB = ("alice", "open sesame"), ("bob", "hunter:2")
UNKNOWN = ("mallory", "open sesame")


def write(file: Path, users: Iterable[tuple[str, str]], *, cost: int = 4) -> str:
    """Write a password file for these users; return its path."""
    file.write_text("".join(f"{user}:{hashed(password, cost=cost)}\n" for user, password in users), "utf-8")
    return str(file)


def header(user: str, password: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def fetch_as(web: Address, credentials: tuple[str, str], path: str = "/healthz") -> Reply:
    """Send a request with a password."""
    return await fetch(web, path, headers=MappingProxyType({"Authorization": header(*credentials)}))


async def status_of(web: Address, credentials: tuple[str, str]) -> int:
    """Return the status of a request with a password."""
    return (await fetch_as(web, credentials)).status


async def send_line(web: Address, line: bytes, host: str | None = None) -> bytes:
    """Send a request with this header line, from `host` if given; return the answer."""
    async with await trio.open_tcp_stream(*web, local_address=host) as client:
        await client.send_all(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + line + b"\r\n\r\n"
        )
        return await receive_all(client)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with two users."""
    path = tmp_path / "passwords"
    write(path, [ALICE, BOB])
    return path


@pytest.fixture
async def running(start_socket: Start, file: Path) -> Running:
    """A server with passwords for its web listener."""
    return await start_socket(metrics_port=0, metrics_passwords=str(file))


@pytest.fixture
def web(running: Running) -> Address:
    """The address of its web listener."""
    return web_of(running)


@pytest.fixture
def hashings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hashes with which passwords were compared, in order."""
    against: list[bytes] = []
    checkpw = bcrypt.checkpw

    def check(password: bytes, hashed: bytes) -> bool:
        against.append(hashed)
        return checkpw(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", check)
    return against


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
async def test_a_request_without_a_password_gets_401(path: str, method: str, web: Address) -> None:
    """Every path, even an unknown one, answers 401 with a challenge (RFC 7617, section 2)."""
    reply = await fetch(web, path, method=method)
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"] == 'Basic realm="triojam", charset="UTF-8"'


@pytest.mark.parametrize("path", PATHS)
async def test_a_right_password_gets_every_page(path: str, web: Address) -> None:
    """Each user gets every page; a password may contain a colon."""
    for credentials in (ALICE, BOB):
        assert (await fetch_as(web, credentials, path)).status == 200


async def test_wrong_passwords_are_counted(running: Running, web: Address) -> None:
    """No password, a wrong one, that of another user, and an unknown user are counted by reason."""
    for wrong in (("alice", "open sesame "), ("alice", ""), ("alice", BOB[1]), UNKNOWN, ("", "")):
        assert await status_of(web, wrong) == 401
    assert (await fetch(web, "/metrics")).status == 401
    page = (await fetch_as(web, ALICE, "/metrics")).text
    for reason, times in (("missing", 1), ("wrong", 5), ("limited", 0)):
        assert f'triojam_web_auth_failures_total{{reason="{reason}"}} {times}.0\n' in page


async def test_no_password_is_needed_by_default(start_socket: Start) -> None:
    """Without a password file every request is served, with any password or none."""
    running = await start_socket(metrics_port=0)
    assert (await fetch(web_of(running), "/metrics")).status == 200
    assert await status_of(web_of(running), UNKNOWN) == 200


LINES = [
    b"Authorization:", b"Authorization: Basic", b"Authorization: Basic =", b"Authorization: Basic !!!!",
    b"Authorization: Basic YWxpY2U", b"Authorization: Basic \xff\xfe\x80", b"Authorization: Bearer YTpi",
    b"Authorization: Basic " + base64.b64encode(b"no colon"),
    b"Authorization: Basic " + base64.b64encode(b"\xff\xfe:\x80\x00"),
    b"Authorization: Basic " + base64.b64encode(b"alice:\x00"),
    b"Authorization: Basic " + base64.b64encode(b"a\x1b[31m\n:b"),
    b"Authorization: Basic " + base64.b64encode(b"alice:" + b"x" * 9000),
    b"Authorization: " + header(*ALICE).encode() + b"\r\nAuthorization: " + header(*ALICE).encode(),
    b"Authorization: " + header(*ALICE).encode() + b", " + header(*ALICE).encode(),
]  # fmt: skip


async def test_a_malformed_header_gets_401_or_400(running: Running, web: Address) -> None:
    """Any bytes in the header give 401, or 400 if they are not HTTP, and no error in the log."""
    for line in LINES:
        assert (await send_line(web, line)).startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ")), line
    assert not [event for event in running.events if event["level"] == "error"]
    assert await status_of(web, ALICE) == 200


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC", "Basic "])
def test_the_scheme_has_no_case(scheme: str) -> None:
    """The name of the scheme is case-insensitive (RFC 9110, section 11.1)."""
    assert parse_credentials(f"{scheme} YTpiOmM=".encode()) == (b"a", b"b:c")


async def test_a_right_password_is_hashed_once(hashings: list[bytes], web: Address) -> None:
    """Only the first of many scrapes costs a hash; each wrong password costs one."""
    for _ in range(20):
        assert await status_of(web, ALICE) == 200
    assert len(hashings) == 1
    for _ in range(2):
        assert await status_of(web, ("alice", "open")) == 401
    assert len(hashings) == 3
    assert await status_of(web, ALICE) == 200
    assert len(hashings) == 3


async def test_simultaneous_requests_are_hashed_once(hashings: list[bytes], web: Address) -> None:
    """Simultaneous requests with the same right password wait for one hash."""
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append(await status_of(web, ALICE))

    async with trio.open_nursery() as nursery:
        for _ in range(GUESSES_AT_ONCE):
            nursery.start_soon(ask)
    assert statuses == [200] * GUESSES_AT_ONCE
    assert len(hashings) == 1


async def test_an_unknown_user_costs_the_same(hashings: list[bytes], web: Address, file: Path) -> None:
    """An unknown name is compared with a hash of the file, always with the same one."""
    for _ in range(3):
        assert await status_of(web, UNKNOWN) == 401
    assert len(hashings) == 3
    assert len(set(hashings)) == 1
    assert hashings[0] in load_hashes(str(file)).values()


async def test_guesses_are_limited(hashings: list[bytes], running: Running, web: Address) -> None:
    """After some guesses a source gets 429 without hashing; a verified password still passes."""
    assert await status_of(web, ALICE) == 200  # the first guess
    for _ in range(GUESSES_AT_ONCE - 1):
        assert await status_of(web, UNKNOWN) == 401
    assert len(hashings) == GUESSES_AT_ONCE
    for guess in (UNKNOWN, ("alice", "x"), BOB):
        reply = await fetch_as(web, guess, "/metrics")
        assert reply.status == 429
        assert reply.headers["Retry-After"] == str(SECONDS_PER_GUESS)
    assert len(hashings) == GUESSES_AT_ONCE
    assert running.counters.auth_failures[AuthFailure.LIMITED] == 3
    assert await status_of(web, ALICE) == 200
    assert (await fetch(web, "/metrics")).status == 401  # so that a browser asks for a password


class Guarded:
    """The guard in front of an empty page, without HTTP, with a manual clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.counters = Counters()
        self.events = Events()
        log = self.events.make_logger("info")
        passwords = Passwords({b"alice": hashed(ALICE[1]).encode()}, key=KEY)
        self._auth = BasicAuth(
            self._page, passwords=passwords, counters=self.counters, log=lambda: log, now=lambda: self.now
        )

    async def ask(self, host: str, credentials: tuple[str, str]) -> int:
        """Return the status of a request from this address."""
        headers = {"authorization": header(*credentials)}
        return (await self._auth.answer(Request(method="GET", path="/", headers=headers, source=host))).status

    async def _page(self, _request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return Response()


async def test_a_limited_source_gets_its_guesses_back() -> None:
    """A source has one more guess after the seconds in Retry-After; a right password passes then."""
    guarded = Guarded()
    for _ in range(GUESSES_AT_ONCE):
        assert await guarded.ask("192.0.2.1", UNKNOWN) == 401
    guarded.now += SECONDS_PER_GUESS - 1
    assert await guarded.ask("192.0.2.1", ALICE) == 429
    guarded.now += 1
    assert await guarded.ask("192.0.2.1", ALICE) == 200
    assert await guarded.ask("192.0.2.1", UNKNOWN) == 429


async def test_each_source_has_its_own_limit() -> None:
    """An IPv6 /64 is one source."""
    guarded = Guarded()
    for number in range(GUESSES_AT_ONCE):
        assert await guarded.ask(f"2001:db8::{number}", UNKNOWN) == 401
    assert await guarded.ask("2001:db8::ffff:1", UNKNOWN) == 429
    assert await guarded.ask("2001:db8:0:1::1", UNKNOWN) == 401
    assert await guarded.ask("192.0.2.1", ALICE) == 200


async def test_many_failures_share_a_log_line() -> None:
    """A line has the number of failures, the source and a known user; never a password or an unknown name."""
    guarded = Guarded()
    for _ in range(50):
        await guarded.ask("192.0.2.1", ("alice", "s3cret"))
    guarded.now += 3600
    await guarded.ask("192.0.2.2", ("m\x1bllory", "s3cret"))
    first, second = guarded.events.named("web authentication failed")
    assert (first["source"], first["user"], first["failures"]) == ("192.0.2.1", "alice", 1)
    assert (second["source"], second["user"], second["failures"]) == ("192.0.2.2", None, 50)
    assert "s3cret" not in str(guarded.events)
    assert "llory" not in str(guarded.events)


async def test_a_reload_replaces_the_users(
    hashings: list[bytes], running: Running, web: Address, file: Path
) -> None:
    """After a reload, removed users are refused, new users pass, and unchanged users need no hash."""
    for credentials in (ALICE, BOB):
        assert await status_of(web, credentials) == 200
    unchanged, _ = (await trio.Path(file).read_text()).splitlines()
    await trio.Path(file).write_text(f"{unchanged}\n{UNKNOWN[0]}:{hashed(UNKNOWN[1])}\n")
    running.reload()
    assert await status_of(web, BOB) == 401
    assert await status_of(web, UNKNOWN) == 200
    hashings.clear()
    assert await status_of(web, ALICE) == 200
    assert hashings == []
    write(file, [ALICE])
    running.reload()
    assert await status_of(web, ALICE) == 200
    assert len(hashings) == 1  # the same password with a new hash


async def test_sighup_with_an_invalid_file_changes_nothing(file: Path) -> None:
    """After SIGHUP with an invalid file all old settings stay, and the log has the line."""
    config = trio.Path(file.with_name("t.toml"))
    await config.write_text(f"metrics_passwords = {str(file)!r}\nlog_level = 'info'\n")
    async with serving("--config", str(config)) as program:
        assert await status_of(program.web, UNKNOWN) == 401
        await trio.Path(file).write_text(f"{GOOD}\nbob:x\n")
        await config.write_text(f"metrics_passwords = {str(file)!r}\nlog_level = 'debug'\n")
        program.process.send_signal(signal.SIGHUP)
        failed = await program.logged("settings not reloaded, the old ones stay")
        assert "line 2" in failed["reason"]
        assert await status_of(program.web, ALICE) == 200
        # `serving` ends with a scrape, and that has no password.
        await config.write_text("log_level = 'info'\n")
        program.process.send_signal(signal.SIGHUP)
        reloaded = await program.logged("settings reloaded")
        assert reloaded["changed"] == ["metrics_passwords"]
        assert (await scrape(program.web)).total("triojam_web_auth_failures_total", reason="wrong") == 1


GUESS = b"Authorization: " + header(*UNKNOWN).encode()


class Hashing:
    """Stands in for bcrypt: a hash ends when the test says so. begun: the passwords, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_end = threading.Event()
        self.begun: list[bytes] = []
        self._checkpw = bcrypt.checkpw
        monkeypatch.setattr(bcrypt, "checkpw", self._check)

    def _check(self, password: bytes, against: bytes) -> bool:
        self.begun.append(password)
        return self.may_end.wait(PATIENCE) and self._checkpw(password, against)


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashing]:
    """Hashes that do not end before the test lets them."""
    hashing = Hashing(monkeypatch)
    yield hashing
    hashing.may_end.set()


async def test_guesses_do_not_delay_the_time_service(
    running: Running, web: Address, hashing: Hashing
) -> None:
    """While a hash does not end, three wait, other guesses are refused, and clients are served."""
    counted = running.counters.auth_failures
    async with trio.open_nursery() as nursery:
        for number in range(MOST_CONNECTIONS):
            guess = b"Authorization: " + header("alice", str(number)).encode()
            nursery.start_soon(send_line, web, guess, f"127.0.0.{number + 2}")
        await until(lambda: counted[AuthFailure.LIMITED] == MOST_CONNECTIONS - MOST_WAITING)
        for _ in range(100):
            assert await running.ask(b"TIME\r\n") == JAM
        assert len(hashing.begun) == 1
        hashing.may_end.set()
    assert counted[AuthFailure.WRONG] == MOST_WAITING
    assert len(hashing.begun) == MOST_WAITING


async def test_one_source_cannot_take_all_hashes(running: Running, web: Address, hashing: Hashing) -> None:
    """While one source guesses, a right password from another source is hashed after two hashes at most."""
    counted = running.counters.auth_failures
    right: list[bytes] = []

    async def ask() -> None:
        right.append(await send_line(web, b"Authorization: " + header(*ALICE).encode(), "127.0.0.2"))

    async with trio.open_nursery() as nursery:
        for number in range(GUESSES_AT_ONCE):
            guess = b"Authorization: " + header("alice", str(number)).encode()
            nursery.start_soon(send_line, web, guess, "127.0.0.3")
        await until(lambda: counted[AuthFailure.LIMITED] == GUESSES_AT_ONCE - MOST_A_SOURCE)
        nursery.start_soon(ask)
        await until(lambda: passwords_of(running).checking(*map(str.encode, ALICE)))
        hashing.may_end.set()
    assert right[0].startswith(b"HTTP/1.1 200 ")
    assert hashing.begun[MOST_A_SOURCE] == ALICE[1].encode()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
async def test_guessers_do_not_lock_out_a_scraper(
    host: str, running: Running, web: Address, hashing: Hashing
) -> None:
    """While 30 clients guess and no hash ends, a scraper with a known password that restarts is answered."""
    hashing.may_end.set()
    assert await status_of(web, ALICE) == 200
    hashing.may_end.clear()
    async with trio.open_nursery() as nursery:

        async def guess(number: int) -> None:
            guess = b"Authorization: " + header("alice", str(number)).encode()
            while True:
                with suppress(OSError, trio.BrokenResourceError):
                    await send_line(web, guess, host)
                await trio.sleep(0.05)

        for number in range(30):
            nursery.start_soon(guess, number)
        await until(lambda: running.counters.auth_failures[AuthFailure.LIMITED] > 30)
        for _ in range(10):
            assert await status_of(web, ALICE) == 200
        nursery.cancel_scope.cancel()
    hashing.may_end.set()


async def test_a_half_closed_client_is_answered_after_a_long_hash(
    running: Running, web: Address, hashing: Hashing
) -> None:
    """A client that has ended its sending side gets its answer, however long the hash takes."""
    async with await trio.open_tcp_stream(*web) as client:
        line = f"Authorization: {header(*ALICE)}\r\n"
        await client.send_all(f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{line}\r\n".encode())
        await client.send_eof()
        await until(lambda: bool(hashing.begun))
        hashing.may_end.set()
        assert (await receive_all(client)).startswith(b"HTTP/1.1 200 ")


async def test_a_long_hash_does_not_delay_the_end(running: Running, web: Address, hashing: Hashing) -> None:
    """A drain does not wait for a hash that does not end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_line, web, GUESS, "127.0.0.2")
        await until(lambda: bool(hashing.begun))
        running.drain()
        with trio.fail_after(GRACEFUL_SECONDS + 5):
            await running.finished.wait()


def passwords_of(running: Running) -> Passwords:
    """Return the passwords of a server's web listener."""
    assert running.server is not None
    return running.server._passwords


async def test_a_real_hash_does_not_delay_the_time_service(
    running: Running, web: Address, file: Path
) -> None:
    """Clients are served while a real hash is computed: bcrypt releases the interpreter lock."""
    assert running.server is not None
    write(file, [ALICE], cost=13)
    running.reload()
    served = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_line, web, GUESS, "127.0.0.2")
        await until(running.server._passwords._hashing.locked)
        while running.server._passwords._hashing.locked():
            assert await running.ask(b"TIME\r\n") == JAM
            served += 1
    assert served >= 10


@pytest.mark.parametrize(("host", "warnings"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
async def test_passwords_in_clear_log_a_warning(
    host: str, warnings: int, file: Path, nursery: trio.Nursery
) -> None:
    """The log warns at the start if passwords could cross a network without TLS."""
    running = await start_tcp(nursery, metrics_host=host, metrics_port=0, metrics_passwords=str(file))
    assert len([event for event in running.events if "in clear" in event["event"]]) == warnings
