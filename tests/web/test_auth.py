"""Basic authentication for the web listener: who is let through, what it costs, and what it holds up."""

import base64
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import bcrypt
import pytest
import trio
from starlette.types import Message, Receive, Scope, Send

from tests.conftest import Start
from tests.helpers.program import serving
from tests.helpers.scrape import Address, fetch, scrape
from tests.helpers.servers import JAM, PATIENCE, Events, Running, receive_all, settings_for_test, until
from tests.web.test_passwords import GOOD, KEY, hashed
from tests.web.test_routes import PATHS, web_of
from triojam import serve
from triojam.core.counters import Counters
from triojam.core.reasons import AuthFailure
from triojam.settings.files import load_hashes
from triojam.web.auth import GUESSES_AT_ONCE, SECONDS_PER_GUESS, BasicAuth, Passwords, parse_credentials
from triojam.web.http_server import MOST_CONNECTIONS

ALICE, BOB = ("alice", "open sesame"), ("bob", "hunter:2")
NOBODY = ("nobody", "open sesame")


def write(file: Path, users: Iterable[tuple[str, str]], *, cost: int = 4) -> str:
    """Write a file of these users and their passwords; return its path."""
    file.write_text("".join(f"{user}:{hashed(password, cost=cost)}\n" for user, password in users), "utf-8")
    return str(file)


def keep_first(file: Path, user: tuple[str, str]) -> None:
    """Leave the first line of a file as it is, and put a new user after it instead of the others."""
    (kept, *_) = file.read_text("utf-8").splitlines()
    file.write_text(f"{kept}\n{user[0]}:{hashed(user[1])}\n", "utf-8")


def header(user: str, password: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def basic(credentials: tuple[str, str]) -> MappingProxyType[str, str]:
    """Return the headers of a request with a password."""
    return MappingProxyType({"Authorization": header(*credentials)})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with two users."""
    path = tmp_path / "passwords"
    write(path, [ALICE, BOB])
    return path


@pytest.fixture
async def running(start_socket: Start, file: Path) -> Running:
    """A server whose web listener wants a password."""
    return await start_socket(metrics_port=0, metrics_passwords=str(file))


@pytest.fixture
def web(running: Running) -> Address:
    """The address of its web listener."""
    return web_of(running)


async def status_of(web: Address, credentials: tuple[str, str]) -> int:
    """Return the status of a request with a password."""
    return (await fetch(web, "/healthz", headers=basic(credentials))).status


@pytest.fixture
def hashings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hashes that passwords were held against, in order."""
    against: list[bytes] = []
    checkpw = bcrypt.checkpw

    def check(password: bytes, hashed: bytes) -> bool:
        against.append(hashed)
        return checkpw(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", check)
    return against


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", [*PATHS, "/events", "/nothing"])
async def test_nothing_without_a_password(path: str, method: str, web: Address) -> None:
    """Whatever is asked for, there or not, the answer is 401 and how to do better (RFC 7617, section 2)."""
    reply = await fetch(web, path, method=method)
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"] == 'Basic realm="triojam", charset="UTF-8"'


@pytest.mark.parametrize("path", PATHS)
async def test_everything_with_a_password(path: str, web: Address) -> None:
    """Each user gets every page; a password may have a colon in it."""
    for credentials in (ALICE, BOB):
        assert (await fetch(web, path, headers=basic(credentials))).status == 200


async def test_wrong_passwords_are_counted(running: Running, web: Address) -> None:
    """No password, a wrong one, someone else's and an unknown user are 401, counted by reason."""
    for wrong in (("alice", "open sesame "), ("alice", ""), ("alice", BOB[1]), NOBODY, ("", "")):
        assert await status_of(web, wrong) == 401
    assert (await fetch(web, "/metrics")).status == 401
    page = (await fetch(web, "/metrics", headers=basic(ALICE))).text
    for reason, times in (("missing", 1), ("wrong", 5), ("limited", 0)):
        assert f'triojam_web_auth_failures_total{{reason="{reason}"}} {times}.0\n' in page


async def test_without_a_file_everybody_is_let_in(start_socket: Start) -> None:
    """By default nobody is asked for a password, and one that is given anyway does not matter."""
    running = await start_socket(metrics_port=0)
    assert (await fetch(web_of(running), "/metrics")).status == 200
    assert await status_of(web_of(running), NOBODY) == 200


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


async def test_no_header_makes_it_stumble(running: Running, web: Address) -> None:
    """Whatever bytes stand in the header: 401 or, where it is no HTTP, 400; and no error in the log."""
    for line in LINES:
        async with await trio.open_tcp_stream(*web) as client:
            await client.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + line + b"\r\n\r\n")
            answer = await receive_all(client)
        assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ")), line
    assert not [event for event in running.events if event["level"] == "error"]
    assert await status_of(web, ALICE) == 200


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC", "Basic "])
def test_the_scheme_has_no_case(scheme: str) -> None:
    """The name of the scheme may be spelled in any case (RFC 9110, section 11.1)."""
    assert parse_credentials(f"{scheme} YTpiOmM=".encode()) == (b"a", b"b:c")


async def test_a_right_password_is_hashed_once(hashings: list[bytes], web: Address) -> None:
    """Scrape after scrape costs no hash but the first; a wrong password costs one each time."""
    for _ in range(20):
        assert await status_of(web, ALICE) == 200
    assert len(hashings) == 1
    for _ in range(2):
        assert await status_of(web, ("alice", "open")) == 401
    assert len(hashings) == 3
    assert await status_of(web, ALICE) == 200
    assert len(hashings) == 3


async def test_who_come_at_once_are_hashed_once(hashings: list[bytes], web: Address) -> None:
    """A browser that asks for several pages at once waits for one hash."""
    async with trio.open_nursery() as nursery:
        for _ in range(GUESSES_AT_ONCE):
            nursery.start_soon(status_of, web, ALICE)
    assert len(hashings) == 1


async def test_an_unknown_user_costs_the_same(hashings: list[bytes], web: Address, file: Path) -> None:
    """A name that is not in the file is held against a hash that is, each time the same one."""
    for _ in range(3):
        assert await status_of(web, NOBODY) == 401
    assert len(hashings) == 3
    assert len(set(hashings)) == 1
    assert hashings[0] in load_hashes(str(file)).values()


async def test_guesses_are_limited(hashings: list[bytes], running: Running, web: Address) -> None:
    """After some guesses a source is told to wait, unheard; who was right before is still let in."""
    assert await status_of(web, ALICE) == 200  # the first guess
    for _ in range(GUESSES_AT_ONCE - 1):
        assert await status_of(web, NOBODY) == 401
    assert len(hashings) == GUESSES_AT_ONCE
    for guess in (NOBODY, ("alice", "x"), BOB):
        reply = await fetch(web, "/metrics", headers=basic(guess))
        assert reply.status == 429
        assert reply.headers["Retry-After"] == str(SECONDS_PER_GUESS)
    assert len(hashings) == GUESSES_AT_ONCE
    assert running.counters.auth_failures[AuthFailure.LIMITED] == 3
    assert await status_of(web, ALICE) == 200
    assert (await fetch(web, "/metrics")).status == 401  # a browser is to ask for a password, not to wait


class Guarded:
    """The guard before an application that does nothing, without HTTP, and with a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.counters = Counters()
        self.events = Events()
        log = self.events.make_logger("info")
        passwords = Passwords({b"alice": hashed(ALICE[1]).encode()}, key=KEY)
        self._auth = BasicAuth(
            self._app, passwords=passwords, counters=self.counters, log=lambda: log, now=lambda: self.now
        )

    async def ask(self, host: str | None, credentials: tuple[str, str]) -> int:
        """Return the status for a request from this address."""
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope: dict[str, Any] = {
            "type": "http",
            "client": host and (host, 1),
            "headers": [(b"authorization", header(*credentials).encode())],
        }
        await self._auth(scope, self._receive, send)
        return int(sent[0]["status"])

    async def _receive(self) -> Message:
        raise AssertionError("the body is nobody's business")

    async def _app(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})


async def test_a_limited_source_gets_its_guesses_back() -> None:
    """One guess comes back after the time that Retry-After gives, and whoever is right then is let in."""
    guarded = Guarded()
    for _ in range(GUESSES_AT_ONCE):
        assert await guarded.ask("192.0.2.1", NOBODY) == 401
    guarded.now += SECONDS_PER_GUESS - 1
    assert await guarded.ask("192.0.2.1", ALICE) == 429
    guarded.now += 1
    assert await guarded.ask("192.0.2.1", ALICE) == 200
    assert await guarded.ask("192.0.2.1", NOBODY) == 429


async def test_sources_are_limited_each() -> None:
    """Each source has guesses of its own; an IPv6 /64 is one source, and so are all without an address."""
    guarded = Guarded()
    for number in range(GUESSES_AT_ONCE):
        assert await guarded.ask(f"2001:db8::{number}", NOBODY) == 401
        assert await guarded.ask(None, NOBODY) == 401
    assert await guarded.ask("2001:db8::ffff:1", NOBODY) == 429
    assert await guarded.ask(None, NOBODY) == 429
    assert await guarded.ask("2001:db8:0:1::1", NOBODY) == 401
    assert await guarded.ask("192.0.2.1", ALICE) == 200


async def test_failures_are_logged_now_and_then() -> None:
    """One line tells of many failures, whence, and for which user, if it is one; nothing else they sent."""
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
    """A reload reads the file anew: who is gone is out, who is new is in, who stays is still remembered."""
    assert running.server is not None
    for credentials in (ALICE, BOB):
        assert await status_of(web, credentials) == 200
    keep_first(file, NOBODY)
    running.server.reload(running.server._settings)
    assert await status_of(web, BOB) == 401
    assert await status_of(web, NOBODY) == 200
    hashings.clear()
    assert await status_of(web, ALICE) == 200
    assert hashings == []
    write(file, [ALICE])
    running.server.reload(running.server._settings)
    assert await status_of(web, ALICE) == 200
    assert len(hashings) == 1  # the same password in a new line is looked at again


async def test_sighup_with_an_unusable_file(file: Path) -> None:
    """SIGHUP with an unusable file changes nothing at all, and says which line it was."""
    config = trio.Path(file.with_name("t.toml"))
    await config.write_text(f"metrics_passwords = {str(file)!r}\nlog_level = 'info'\n")
    async with serving("--config", str(config)) as program:
        assert await status_of(program.web, NOBODY) == 401
        await trio.Path(file).write_text(f"{GOOD}\nbob:x\n")
        await config.write_text(f"metrics_passwords = {str(file)!r}\nlog_level = 'debug'\n")
        program.process.send_signal(signal.SIGHUP)
        failed = await program.logged("settings not reloaded, the old ones stay")
        assert "line 2" in failed["reason"]
        assert await status_of(program.web, ALICE) == 200
        await config.write_text("log_level = 'info'\n")
        program.process.send_signal(signal.SIGHUP)
        reloaded = await program.logged("settings reloaded")
        assert reloaded["changed"] == ["metrics_passwords"]  # so that the end of this block can scrape
        assert (await scrape(program.web)).total("triojam_web_auth_failures_total", reason="wrong") == 1


async def ask_from(web: Address, host: str, credentials: tuple[str, str]) -> bytes:
    """Ask from another loopback address; return the answer."""
    async with await trio.open_tcp_stream(*web, local_address=host) as client:
        await client.send_all(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: "
            + header(*credentials).encode()
            + b"\r\n\r\n"
        )
        return await receive_all(client)


async def test_guessing_does_not_hold_up_the_time(
    running: Running, web: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While every web connection waits for a hash that takes forever, one is hashed, and the time is told."""
    let_go = threading.Event()
    hashing: list[bytes] = []

    def never_ends(password: bytes, _: bytes) -> bool:
        hashing.append(password)
        return not let_go.wait(PATIENCE)

    monkeypatch.setattr(bcrypt, "checkpw", never_ends)
    try:
        async with trio.open_nursery() as nursery:
            for number in range(MOST_CONNECTIONS):
                nursery.start_soon(ask_from, web, f"127.0.0.{number + 2}", NOBODY)
            assert running.server is not None
            lock = running.server._passwords._hashing
            await until(lambda: lock.statistics().tasks_waiting == MOST_CONNECTIONS - 1)
            for _ in range(100):
                assert await running.ask(b"TIME\r\n") == JAM
            assert len(hashing) == 1
            let_go.set()
    finally:
        let_go.set()
    assert running.counters.auth_failures[AuthFailure.WRONG] == MOST_CONNECTIONS


async def test_a_real_hash_does_not_hold_up_the_time(running: Running, web: Address, file: Path) -> None:
    """While one real hash is computed, clients are served: it does not keep the interpreter to itself."""
    assert running.server is not None
    write(file, [ALICE], cost=13)
    running.server.reload(running.server._settings)
    told = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_from, web, "127.0.0.2", NOBODY)
        await until(running.server._passwords._hashing.locked)
        while running.server._passwords._hashing.locked():
            assert await running.ask(b"TIME\r\n") == JAM
            told += 1
    assert told >= 10


@pytest.mark.parametrize(("host", "warnings"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
async def test_passwords_in_clear(host: str, warnings: int, file: Path) -> None:
    """Where passwords could cross a network without TLS, the log says so at the start."""
    events = Events()
    async with trio.open_nursery() as nursery:
        settings = settings_for_test(metrics_host=host, metrics_port=0, metrics_passwords=str(file))

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            await serve(settings, make_logger=events.make_logger, task_status=task_status)

        await nursery.start(run)
        assert len([event for event in events if "in clear" in event["event"]]) == warnings
        nursery.cancel_scope.cancel()
