"""TLS on both listeners: good and bad handshakes, certificates that change, and other programs as clients."""

import re
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import thread_time
from typing import Any

import pytest
import trio
import trustme

import triojam
from tests.attack.hostile import record_hello
from tests.conftest import Start, _starter
from tests.helpers.pages import block, commands
from tests.helpers.program import COMMAND, environment, serving
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Address, scrape
from tests.helpers.servers import (
    JAM,
    PATIENCE,
    Running,
    TlsClient,
    assert_answered,
    authority,
    certificate,
    certificate_file,
    open_tls,
    receive_all,
    receive_exactly,
    start_tls,
    trusting,
    until,
)
from triojam.core.reasons import Disconnect, Rejection, Reload
from triojam.serving.deadlines import FAREWELL
from triojam.serving.listeners import prepare
from triojam.serving.streams import RECEIVE_BYTES, TcpStream
from triojam.serving.tls import MOST_UNSAID, TlsStream
from triojam.settings.fields import CERTIFICATE, CLIENT_CA, KEY, SettingError
from triojam.settings.files import load_contexts


@pytest.fixture
async def tls(nursery: trio.Nursery) -> AsyncIterator[Callable[..., object]]:
    """Start servers over TLS only; afterwards nothing may be left."""
    async for starter in _starter(start_tls, nursery):
        yield starter


def tls_address(running: Running) -> Address:
    """Return the address of the TLS port."""
    assert running.server is not None
    return running.server.tls_addresses[0]


async def pair() -> tuple[TlsClient, TlsStream]:
    """Make both ends of a TLS connection after its handshake."""
    context = load_contexts(certificate=certificate_file(), key="", client_ca="", time=True, web=False).time
    assert context is not None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tcp = await trio.open_tcp_stream(*listening.getsockname())
        sock, _ = listening.accept()
    prepare(sock)
    server = TlsStream(TcpStream(sock), lambda: context, trio.CapacityLimiter(1))
    client = TlsClient(tcp, trusting())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.begin)
        await client.tls.do_handshake()
    return client, server


async def test_a_record_that_is_cut_is_not_counted_as_taken() -> None:
    """A part of a record is not counted as taken, and the next record can be decrypted."""
    client, server = await pair()
    async with client, server:
        sent = 0
        while server.send_now(bytes(10_000)):
            sent += 10_000
        assert server.taken == 0
        assert len(await receive_exactly(client, sent)) == sent
        await server.flush()
        assert server.send_now(b"more")
        assert (await receive_exactly(client, 10_004))[-4:] == b"more"


async def received_now(server: TlsStream) -> bytes:
    """Receive the next record, and wait for it if necessary."""
    while (data := server.receive_now(RECEIVE_BYTES)) is None:
        await server.wait_readable()
    return data


async def test_records_are_received_one_at_a_time() -> None:
    """Each call returns one record, or a piece of a record that is larger than the call allows."""
    client, server = await pair()
    async with client, server:
        for number in range(100):
            await client.send_all(b"TIME%02d" % number)
        assert [await received_now(server) for _ in range(100)] == [b"TIME%02d" % n for n in range(100)]
        assert server.receive_now(RECEIVE_BYTES) is None
        await client.send_all(bytes(20_000))
        assert sum([len(await received_now(server)) for _ in range(5)]) <= 20_000


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_request_before_a_broken_record_is_answered(tls: Start, version: ssl.TLSVersion) -> None:
    """A good request in the same segment as a broken record gets its answer; then comes an alert."""
    running = await tls()
    context = trusting()
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    async with await trio.open_tcp_stream(*tls_address(running)) as tcp:
        while True:
            with suppress(ssl.SSLWantReadError):
                client.do_handshake()
                break
            await tcp.send_all(outgoing.read())
            incoming.write(await tcp.receive_some())
        client.write(b"TIME\r\n")
        broken = b"\x17\x03\x03\x00\x20" + bytes(32)
        await tcp.send_all(outgoing.read() + broken)
        incoming.write(await receive_all(tcp))
        assert client.read() == JAM
        with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
            client.read()
    await until(lambda: running.counters.disconnects[Disconnect.RESET] == 1)
    assert running.counters.responses == 1


# Every group that OpenSSL may offer in TLS 1.3 (RFC 8446, 4.2.7), beyond those of post-quantum key exchange.
GROUPS = [
    "P-256", "P-384", "P-521", "X25519", "X448",
    "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192",
]  # fmt: skip
# How long a hello may compute, in seconds of CPU time; the largest group of finite fields takes 0.15.
HELLO_BUDGET = 0.01


@pytest.mark.parametrize("listener", ["time", "web"])
@pytest.mark.parametrize("group", GROUPS)
def test_no_group_is_expensive(group: str, listener: str) -> None:
    """A hello that offers only one group is cheap to answer, or is refused, on both TLS listeners."""
    require_program("openssl", "openssl")
    hello = record_hello(group)
    contexts = load_contexts(certificate=certificate_file(), key="", client_ca="", time=True, web=True)
    context: ssl.SSLContext = getattr(contexts, listener)
    spent = []
    for _ in range(3):
        incoming = ssl.MemoryBIO()
        incoming.write(hello)
        server = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
        began = thread_time()
        with pytest.raises(ssl.SSLError) as ended:
            server.do_handshake()
        spent.append(thread_time() - began)
    assert isinstance(ended.value, ssl.SSLWantReadError) or group != "P-256"
    assert min(spent) < HELLO_BUDGET


@pytest.mark.parametrize("groups", ["P-256", "X25519:P-256", "P-384:P-256"])
async def test_common_clients_find_a_group(groups: str) -> None:
    """The offers of openssl, Python, browsers, Go and Java include the group of the server, first or not."""
    async with secured() as (_, address):
        assert (await ask_with_openssl(address, "-groups", groups))[:4] == "JAM "


async def test_a_client_that_does_not_read_its_new_keys_is_cut_off() -> None:
    """The bytes that TLS keeps for a client that does not read are bounded."""
    client, server = await pair()
    async with server:
        while server.send_now(bytes(10_000)):
            pass
        server._outgoing.write(bytes(MOST_UNSAID))
        assert server.receive_now(RECEIVE_BYTES) is None
        server._outgoing.write(b"x")
        with pytest.raises(trio.BrokenResourceError):
            server.receive_now(RECEIVE_BYTES)
    await trio.aclose_forcefully(client)


async def test_a_memory_error_in_a_handshake_ends_only_that_connection(
    tls: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A MemoryError at the start of a handshake ends only its connection."""
    running = await tls()

    def fail(*_arguments: object, **_named: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(ssl.SSLContext, "wrap_bio", fail)
        async with await trio.open_tcp_stream(*tls_address(running)) as unlucky:
            await unlucky.send_all(b"\x16\x03\x01\x02\x00\x01")
            await until(lambda: running.counters.internal_errors == 1)
    running.internal_errors = 1
    assert await running.ask(b"TIME\r\n") == JAM


async def test_few_handshakes_compute_in_one_turn(tls: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """If many hellos come at once, other tasks run after every four of them."""
    running = await tls()
    hello = b"\x16\x03\x01\x02\x00\x01" + bytes(600)
    computed, most = 0, 0
    do_handshake = ssl.SSLObject.do_handshake

    def counting(self: ssl.SSLObject) -> None:
        nonlocal computed
        computed += 1
        do_handshake(self)

    monkeypatch.setattr(ssl.SSLObject, "do_handshake", counting)
    clients = [socket.create_connection(tls_address(running)) for _ in range(60)]
    for client in clients:
        client.sendall(hello)
    while running.counters.disconnects[Disconnect.HANDSHAKE] < len(clients):
        before = computed
        await trio.lowlevel.checkpoint()
        most = max(most, computed - before)
        for client in clients:
            client.close()
    assert computed >= len(clients)
    assert most <= 8  # four per turn, and this task may run only every second turn


async def test_the_first_answer_does_not_wait_for_a_delayed_acknowledgement(tls: Start) -> None:
    """If the client uses Nagle's algorithm, the best of ten first answers comes within 20 ms."""
    running = await tls()
    waits = []
    for _ in range(10):
        tcp = await trio.open_tcp_stream(*tls_address(running))
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        async with TlsClient(tcp, trusting()) as client:
            await client.tls.do_handshake()
            began = trio.current_time()
            await assert_answered(client)
            waits.append(trio.current_time() - began)
    assert min(waits) < 0.02  # a delayed acknowledgement takes 40 ms at least


async def test_a_reload_gives_a_late_handshake_more_time(tls: Start) -> None:
    """A connection stays if a reload extends its time at the moment at which its handshake is late."""
    running = await tls(line_timeout=1000)
    client = TlsClient(await trio.open_tcp_stream(*tls_address(running)), trusting())
    async with client:
        await until(lambda: len(running.handler._clients) == 1)
        await trio.testing.wait_all_tasks_blocked()
        (waiting,) = running.handler._clients
        waiting.release()  # as a deadline of the former line_timeout does
        await trio.testing.wait_all_tasks_blocked()
        await client.tls.do_handshake()
        await assert_answered(client)


async def test_a_reload_changes_the_deadline_of_a_handshake(tls: Start) -> None:
    """A new line timeout applies to a handshake that has begun; its end is counted as a line timeout."""
    running = await tls(line_timeout=60)
    async with await trio.open_tcp_stream(*tls_address(running)) as client:
        await client.send_all(b"\x16\x03\x01\x02\x00\x01")
        await until(lambda: running.counters.connections_open == 1)
        running.reload(line_timeout=0.05)
        assert await receive_all(client) == b""
    await until(lambda: running.counters.disconnects[Disconnect.LINE_TIMEOUT] == 1)


async def test_close_notify_ends_only_one_direction(tls: Start) -> None:
    """A client that ends only its side of TLS gets every answer, and the end of the server's side."""
    running = await tls()
    client = await running.connect()
    assert isinstance(client, TlsClient)
    await client.send_all(b"TIME\r\n" * 1000)
    await client.tls._retry(client.tls._ssl_object.unwrap, ignore_want_read=True)
    assert await receive_exactly(client, 1000 * len(JAM)) == JAM * 1000
    with pytest.raises(trio.BrokenResourceError) as ended:  # Trio knows no end after an end
        await client.receive_some()
    assert isinstance(ended.value.__cause__, ssl.SSLZeroReturnError)
    await until(lambda: running.counters.disconnects[Disconnect.EOF] == 1)


@pytest.mark.parametrize("how", ["close_notify", "FIN"])
async def test_both_ends_of_the_stream_within_a_line_count_the_line(tls: Start, how: str) -> None:
    """An end of TLS or of TCP within a line counts the line as incomplete."""
    running = await tls()
    client = await running.connect()
    await client.send_all(b"TIME\r\nTI")
    await (client.aclose() if how == "close_notify" else client.send_eof())
    await until(lambda: running.counters.connections_open == 0)
    assert running.counters.requests == 2
    assert running.counters.rejected[Rejection.INCOMPLETE] == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_new_tls_versions_are_answered(tls: Start, version: ssl.TLSVersion) -> None:
    """TLS 1.2 and 1.3 are answered."""
    running = await tls()
    context = trusting()
    context.minimum_version = context.maximum_version = version
    async with await open_tls(tls_address(running), context) as client:
        assert client.tls.version() == version.name.replace("_", ".")
        await assert_answered(client)
        # In TLS 1.3 a server may send a ticket without a request.
        assert version == ssl.TLSVersion.TLSv1_2 or not client.tls.session.has_ticket


async def test_old_tls_versions_are_refused(tls: Start) -> None:
    """TLS 1.1 is refused with the right alert, and counted."""
    running = await tls()
    context = trusting()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.deprecated_call():
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(trio.BrokenResourceError) as failed:
        await open_tls(tls_address(running), context)
    assert "PROTOCOL_VERSION" in str(failed.value.__cause__)
    await until(lambda: running.counters.disconnects[Disconnect.HANDSHAKE] == 1)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"TIME\r\n", Disconnect.HANDSHAKE),
        (b"GET / HTTP/1.1\r\n\r\n", Disconnect.HANDSHAKE),
        (b"\x16\x03\x01\x02\x00\x01" + bytes(600), Disconnect.HANDSHAKE),
        (b"\x16\x03\x01\x02\x00\x01\x00", Disconnect.HANDSHAKE),  # it ends within a hello
        (b"", Disconnect.EOF),  # a probe
    ],
)
async def test_a_bad_hello_ends_the_connection(tls: Start, sent: bytes, reason: Disconnect) -> None:
    """A bad hello ends its connection and is counted; a debug line has the reason, not the bytes."""
    running = await tls()
    async with await trio.open_tcp_stream(*tls_address(running)) as client:
        await client.send_all(sent)
        await client.send_eof()
        received = await receive_all(client)
    assert received[:2] in (b"", b"\x15\x03")  # nothing, or an alert
    await until(lambda: running.counters.disconnects[reason] == 1)
    assert running.counters.requests == running.counters.internal_errors == 0
    for event in running.events:
        assert event["level"] == "debug" or event["event"] == "serving"
        assert "TIME" not in str(event)
    assert len(running.events.named("handshake failed")) == (reason is Disconnect.HANDSHAKE)


async def test_a_hello_on_the_plain_port(start_plain: Start) -> None:
    """A TLS client on the plain port gets an error in plain text, and other clients are served."""
    running = await start_plain(idle_timeout=0.5)
    assert running.server is not None
    with pytest.raises(trio.BrokenResourceError):
        await open_tls(running.server.addresses[0], trusting())
    assert await running.ask(b"TIME\r\n") == JAM
    assert running.counters.internal_errors == 0


async def test_slow_handshakes_do_not_delay_other_clients(tls: Start) -> None:
    """A handshake has the line timeout, and other clients are served meanwhile."""
    running = await tls(line_timeout=1.0)
    hello = b"\x16\x03\x01\x02\x00\x01"
    slow = [await trio.open_tcp_stream(*tls_address(running)) for _ in range(20)]
    for client in slow[::2]:
        await client.send_all(hello)
    assert await running.ask(b"TIME\r\n") == JAM
    assert running.counters.disconnects[Disconnect.LINE_TIMEOUT] == 0
    for client in slow:
        assert await receive_all(client) == b""
        await client.aclose()
    await until(lambda: running.counters.disconnects[Disconnect.LINE_TIMEOUT] == 20)


async def test_a_drain_ends_an_unfinished_handshake(tls: Start) -> None:
    """A client in its handshake is closed shortly before the grace time ends."""
    running = await tls(grace=FAREWELL + 0.3)
    async with await trio.open_tcp_stream(*tls_address(running)) as client:
        await until(lambda: running.counters.connections_open == 1)
        running.drain()
        assert await receive_all(client) == b""
    with trio.fail_after(PATIENCE):
        await running.finished.wait()
    assert running.counters.disconnects[Disconnect.DRAIN] == 1


async def test_requests_in_many_records_are_answered_in_a_drain(tls: Start) -> None:
    """A drain answers every request that has arrived, even if each came in its own record."""
    running = await tls()
    client = await running.connect()
    await assert_answered(client)
    for _ in range(3000):
        await client.send_all(b"TIME\r\n")
    running.drain()
    assert await receive_all(client) == JAM * 3000


async def test_a_client_certificate_is_required(tls: Start, tmp_path: Path) -> None:
    """With tls_client_ca, only clients with a certificate from it are served; others are counted."""
    clients = trustme.CA()
    file = tmp_path / "clients.pem"
    clients.cert_pem.write_to_path(str(file))
    running = await tls(tls_client_ca=str(file))
    for issuer in (None, authority()):
        context = trusting()
        if issuer is not None:
            issuer.issue_cert("client@example.org").configure_cert(context)
        with pytest.raises(trio.BrokenResourceError):
            await presented(tls_address(running), context)
    await until(lambda: running.counters.disconnects[Disconnect.HANDSHAKE] == 2)
    context = trusting()
    clients.issue_cert("client@example.org").configure_cert(context)
    async with await open_tls(tls_address(running), context) as client:
        await assert_answered(client)


async def presented(address: Address, context: ssl.SSLContext | None = None) -> bytes:
    """Ask, and return the certificate that the server has shown."""
    async with await open_tls(address, context or trusting()) as client:
        await client.send_all(b"TIME\r\n")
        # In TLS 1.3 the client's handshake ends before the server has checked its certificate.
        assert len(await receive_exactly(client, len(JAM))) == len(JAM)
        shown = client.tls.getpeercert(binary_form=True)
        assert isinstance(shown, bytes)
        return shown


async def test_a_reload_reads_the_certificate_again(tls: Start, tmp_path: Path) -> None:
    """New handshakes get the new certificate, open connections stay, and a bad file changes nothing."""
    file = tmp_path / "server.pem"
    file.write_bytes(certificate().private_key_and_cert_chain_pem.bytes())
    running = await tls(tls_certificate=str(file))
    assert running.server is not None
    old = await running.connect()
    before = await presented(tls_address(running))
    renewed = authority().issue_cert("localhost")
    file.write_bytes(renewed.private_key_and_cert_chain_pem.bytes())
    assert await presented(tls_address(running)) == before
    running.reload()
    after = await presented(tls_address(running))
    assert after != before
    file.write_bytes(b"not a certificate")
    with pytest.raises(SettingError, match="tls_certificate"):
        running.reload(error_budget=1)
    assert running.server is not None
    assert running.server._settings.error_budget != 1
    assert await presented(tls_address(running)) == after
    await assert_answered(old)


def write(folder: Path) -> dict[str, Path]:
    """Write good files and bad files."""
    leaf, other = certificate(), authority().issue_cert("other")
    protected = subprocess.run(
        [require_program("openssl", "openssl"), "ec", "-aes128", "-passout", "pass:secret"],
        input=leaf.private_key_pem.bytes(),
        capture_output=True,
        check=True,
    ).stdout
    contents = {
        "certificate": b"".join(each.bytes() for each in leaf.cert_chain_pems),
        "key": leaf.private_key_pem.bytes(),
        "other_key": other.private_key_pem.bytes(),
        "protected": protected,
        "both_protected": protected + b"".join(each.bytes() for each in leaf.cert_chain_pems),
        "noise": b"\x00\xff\n",
        "empty": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in [*contents, "missing", "."]}


@pytest.mark.parametrize(
    ("files", "culprit", "takes"),
    [
        ({}, "tls_certificate", CERTIFICATE),
        ({"certificate": "missing"}, "tls_certificate", CERTIFICATE),
        ({"certificate": "."}, "tls_certificate", CERTIFICATE),
        ({"certificate": "noise"}, "tls_certificate", CERTIFICATE),
        ({"certificate": "empty"}, "tls_certificate", CERTIFICATE),
        ({"certificate": "key"}, "tls_certificate", CERTIFICATE),
        ({"certificate": "certificate"}, "tls_key", KEY),
        ({"certificate": "certificate", "key": "missing"}, "tls_key", KEY),
        ({"certificate": "certificate", "key": "noise"}, "tls_key", KEY),
        ({"certificate": "certificate", "key": "certificate"}, "tls_key", KEY),
        ({"certificate": "certificate", "key": "other_key"}, "tls_key", KEY),
        ({"certificate": "certificate", "key": "protected"}, "tls_key", KEY),
        ({"certificate": "both_protected"}, "tls_key", KEY),
        ({"certificate": "certificate", "key": "key", "client_ca": "missing"}, "tls_client_ca", CLIENT_CA),
        ({"certificate": "certificate", "key": "key", "client_ca": "noise"}, "tls_client_ca", CLIENT_CA),
        ({"certificate": "certificate", "key": "key", "client_ca": "key"}, "tls_client_ca", CLIENT_CA),
    ],
)
def test_a_bad_file_is_an_error_that_names_its_setting(
    files: dict[str, str], culprit: str, takes: str, tmp_path: Path
) -> None:
    """An error about the files names the setting, and the expected value."""
    paths = write(tmp_path)
    given: dict[str, Any] = {
        name: str(paths[files[name]]) if name in files else "" for name in ("certificate", "key", "client_ca")
    }
    for time in (True, False):
        with pytest.raises(SettingError) as refused:
            load_contexts(**given, time=time, web=True)
        assert (refused.value.name, refused.value.value) == (culprit, given[culprit.removeprefix("tls_")])
        assert refused.value.takes.startswith(takes)
        assert "\n" not in str(refused.value)


def test_key_and_certificate_may_share_a_file() -> None:
    """A file with both needs no key setting."""
    contexts = load_contexts(certificate=certificate_file(), key="", client_ca="", time=True, web=False)
    assert contexts.time is not None
    assert contexts.web is None
    assert load_contexts(certificate="", key="", client_ca="", time=False, web=False) == (None, None)


async def test_the_metric_follows_the_certificate(tls: Start, tmp_path: Path) -> None:
    """A scrape has the end of the certificate in force, for each listener that uses TLS."""
    name = "triojam_tls_certificate_not_after_seconds"
    file = tmp_path / "server.pem"
    file.write_bytes(certificate().private_key_and_cert_chain_pem.bytes())
    running = await tls(metrics_port=0, tls_certificate=str(file))
    assert running.server is not None
    (address,) = running.server.metrics_addresses
    before = await scrape(address)
    assert [sample.labels for sample in before.samples if sample.name == name] == [{"listener": "time"}]
    ends = datetime(2031, 1, 1, tzinfo=UTC)
    renewed = authority().issue_cert("localhost", not_after=ends)
    file.write_bytes(renewed.private_key_and_cert_chain_pem.bytes())
    assert (await scrape(address)).total(name) == before.total(name) != ends.timestamp()
    running.reload()
    assert (await scrape(address)).total(name, listener="time") == ends.timestamp()


async def get(address: Address, path: str) -> bytes:
    """Fetch a page over TLS."""
    async with await open_tls(address, trusting()) as client:
        await client.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return await receive_all(client)


async def test_the_metrics_listener_answers_only_over_tls(tls: Start) -> None:
    """With metrics_tls the metrics listener answers only over TLS; bad clients log nothing."""
    running = await tls(metrics_port=0, metrics_tls=True)
    assert running.server is not None
    address = running.server.metrics_addresses[0]
    for noise in (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", b""):
        async with await trio.open_tcp_stream(*address) as client:
            await client.send_all(noise)
            await client.send_eof()
            assert b"HTTP" not in await receive_all(client)
    page = await get(address, "/metrics")
    assert page.startswith(b"HTTP/1.1 200")
    assert b"triojam_requests_total 0.0" in page
    assert {each["event"] for each in running.events} <= {"serving", "connection ended"}


@asynccontextmanager
async def secured(*words: str) -> AsyncIterator[tuple[trio.Process, str]]:
    """Run a process with a TLS port: (process, address of that port)."""
    files = ("--tls-port", "0", "--tls-certificate", certificate_file())
    async with serving(*files, *words) as program:
        (address,) = program.log[-1]["tls"]
        yield program.process, address


async def run(*command: str) -> tuple[int, str]:
    """Run a command without input: (exit status, output)."""
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env=environment()
        )
    return ended.returncode, ended.stdout.decode()


async def ask_with_openssl(address: str, *words: str) -> str:
    """Ask with the openssl program, and return the answer."""
    openssl = require_program("openssl", "openssl")
    client = f"{openssl} s_client -quiet -connect {address} {' '.join(words)}"
    status, printed = await run("sh", "-c", f"printf 'TIME\\r\\nQUIT\\r\\n' | {client}")
    assert status == 0
    return printed


@pytest.fixture
def trusted(tmp_path: Path) -> str:
    """Write the certificate of the authority to a file, and return its path."""
    authority().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_openssl_trusts_the_server(version: str, trusted: str) -> None:
    """The openssl program trusts the server, and gets an answer."""
    async with secured() as (_, address):
        printed = await ask_with_openssl(address, "-verify_return_error", version, "-CAfile", trusted)
    assert printed.startswith("JAM ")


async def test_the_documented_example_works(tmp_path: Path) -> None:
    """The commands of docs/operate.md make a certificate, serve with it, and get an answer."""
    openssl = require_program("openssl", "openssl")
    make, serve = block("docs/operate.md", "TLS", "sh").splitlines()
    made, _ = await run("sh", "-c", f"cd {tmp_path} && {make.replace('openssl', openssl, 1)}")
    assert made == 0
    flags = serve.removeprefix("triojam ").replace("4501", "0").replace("server.", f"{tmp_path}/server.")
    async with serving(*flags.split()) as program:
        port = program.log[-1]["tls"][0].rpartition(":")[2]
        for command, printed in commands("docs/operate.md", "TLS"):
            command = command.replace("triojam", " ".join(COMMAND)).replace("4501", port)  # noqa: PLW2901  # as typed
            status, answer = await run("sh", "-c", f"cd {tmp_path} && {command}")
            assert status == 0
            assert re.sub(r"\d+", "0", answer.split()[-1]) == re.sub(r"\d+", "0", printed.split()[-1])


async def test_the_programs_own_clients_are_answered(trusted: str) -> None:
    """`triojam ask --tls --ca` and `watch` are answered."""
    async with secured() as (_, address):
        port = address.rpartition(":")[2]
        for command in (["ask"], ["ask", "--precise"], ["watch", "--count", "1"]):
            status, printed = await run(*COMMAND, *command, "--tls", "--ca", trusted, f"localhost:{port}")
            assert status == 0, printed
    assert "1 answered, 0 failed" in printed


async def test_a_process_reloads_its_certificate(tmp_path: Path) -> None:
    """SIGHUP reads the files again; if one is missing, the reload fails and the old certificate stays."""
    file = tmp_path / "server.pem"
    file.write_bytes(certificate().private_key_and_cert_chain_pem.bytes())
    async with serving("--tls-port", "0", "--tls-certificate", str(file)) as program:
        host, _, port = program.log[-1]["tls"][0].rpartition(":")
        address = (host, int(port))
        before = await presented(address)
        file.write_bytes(authority().issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
        program.process.send_signal(signal.SIGHUP)
        await program.logged("settings reloaded")
        after = await presented(address)
        assert after != before
        file.unlink()
        program.process.send_signal(signal.SIGHUP)
        failed = await program.logged("settings not reloaded, the old ones stay")
        assert "tls_certificate" in failed["reason"]
        assert await presented(address) == after
        assert (await program.scrape()).total("triojam_config_reloads_total", result=Reload.FAILURE) == 1


@pytest.mark.parametrize("command", [[], ["check"]])
@pytest.mark.parametrize("wanted", ["--tls-port=0", "--metrics-tls"])
async def test_a_process_without_a_certificate_ends_with_status_2(command: list[str], wanted: str) -> None:
    """TLS without a certificate gives one line that names the setting, and status 2, also with `check`."""
    ended = await trio.run_process(
        [*COMMAND, *command, wanted, "--port=0", "--metrics-port=0"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(),
    )
    assert ended.returncode == 2
    assert ended.stdout == b""
    assert ended.stderr.decode() == f"triojam: invalid value '' for tls_certificate: expected {CERTIFICATE}\n"


async def test_the_function_ask_works_over_tls(tls: Start) -> None:
    """`triojam.ask` gets its answer over TLS."""
    running = await tls()
    _, port = tls_address(running)
    assert (await triojam.ask("localhost", port, tls=trusting())).time == "12:34:56"
