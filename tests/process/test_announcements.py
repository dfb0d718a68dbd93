"""What the log says about the start, a reload and the certificate in force."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.conftest import Start, _starter
from tests.helpers.servers import Events, authority, settings_for_test, start_tls
from triojam.process.announcements import warn_of_certificates, watch_certificates
from triojam.settings.certificates import DAY
from triojam.settings.files import load_files

TODAY = datetime(2027, 3, 1, tzinfo=UTC)


@pytest.fixture
async def tls(nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Start servers over TLS; afterwards nothing may be left."""
    async for starter in _starter(start_tls, nursery):
        yield starter


def write_certificate(file: Path, days: float) -> str:
    """Write a certificate that ends after some days, with its key; return its end in ISO 8601."""
    ends = TODAY + timedelta(days=days)
    issued = authority().issue_cert("localhost", not_after=ends)
    file.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    return ends.strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_the_log_says_which_certificate_is_in_force(tls: Start, tmp_path: Path) -> None:
    """The start and each reload say the name and the end; warnings come while the end is near or past."""
    file = tmp_path / "server.pem"
    ends = write_certificate(file, days=3)
    running = await tls(tls_certificate=str(file), now=TODAY.timestamp)
    (started,) = running.events.named("serving")
    assert (started["certificate"], started["certificate_ends"]) == ("localhost", ends)
    (soon,) = running.events.named("tls certificate ends soon")
    assert (soon["level"], soon["days_left"], soon["certificate_ends"]) == ("warning", 3, ends)

    ends = write_certificate(file, days=90)
    running.reload()
    (renewed,) = running.events.named("settings reloaded")
    assert renewed["changed"] == ["tls_certificate"]
    assert renewed["certificate_ends"] == ends
    assert renewed["certificate_fingerprint"] != started["certificate_fingerprint"]

    running.reload()
    assert running.events.named("settings reloaded")[-1]["changed"] == []
    assert [each["event"] for each in running.events if each["level"] == "warning"] == [soon["event"]]

    write_certificate(file, days=-2)
    running.reload()
    (ended,) = running.events.named("tls certificate has ended")
    assert (ended["level"], ended["days_left"]) == ("warning", -2)


async def test_a_running_server_looks_at_its_certificate_each_day(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """Without a reload, the log has one warning a day from the 14th day before the end."""
    file = tmp_path / "server.pem"
    write_certificate(file, days=15.5)
    files = load_files(settings_for_test(tls_port=0, tls_certificate=str(file)))
    events = Events()
    log = events.make_logger("info")

    def look() -> None:
        warn_of_certificates(files, TODAY.timestamp() + trio.current_time() - began, log)

    began = trio.current_time()
    with trio.move_on_after(16.5 * DAY):
        await watch_certificates(look)
    left = [each["days_left"] for each in events.named("tls certificate ends soon")]
    assert left == [13.5 - days for days in range(14)]
    assert [each["event"] for each in events[len(left) :]] == ["tls certificate has ended"]


async def test_a_client_ca_that_ends_is_a_warning(tls: Start, tmp_path: Path) -> None:
    """The log warns when the last certificate of tls_client_ca ends: no client could connect then."""
    file = tmp_path / "authority.pem"
    write_certificate(file, days=-1)
    old = file.read_bytes()
    running = await tls(tls_client_ca=str(file), now=TODAY.timestamp)
    (event,) = running.events.named("tls client ca has ended")
    assert (event["level"], event["days_left"]) == ("warning", -1)
    name = f"{event['certificate']}, the last certificate of tls_client_ca,"
    assert event["sentence"] == f"{name} ended at {event['certificate_ends']}, 1 day ago"
    write_certificate(file, days=90)
    file.write_bytes(old + file.read_bytes())
    running.reload()
    assert running.events.named("settings reloaded")[0]["changed"] == ["tls_client_ca"]
    assert len([each for each in running.events if each["level"] == "warning"]) == 1


async def test_an_unreadable_end_is_a_warning(tls: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the library cannot read the certificate, the server serves, and the log says so."""
    monkeypatch.setattr("triojam.settings.files.read_certificate", lambda _chain: None)
    running = await tls()
    (started,) = running.events.named("serving")
    assert started["certificate_ends"] is None
    (event,) = running.events.named("tls certificate's end is unknown")
    assert event["level"] == "warning"


async def test_a_chain_names_the_certificate_that_ends_first(tmp_path: Path) -> None:
    """The warning names the certificate of the chain that is to be replaced."""
    file, other = tmp_path / "server.pem", tmp_path / "other.pem"
    write_certificate(file, days=90)
    write_certificate(other, days=-1)
    file.write_bytes(file.read_bytes() + other.read_bytes())
    files = load_files(settings_for_test(tls_port=0, tls_certificate=str(file)))
    events = Events()
    warn_of_certificates(files, TODAY.timestamp(), events.make_logger("info"))
    (event,) = events.named("tls certificate has ended")
    assert event["ends_first"] == "localhost"


async def test_a_server_without_tls_says_nothing_of_certificates(start_plain: Start) -> None:
    """Without TLS there is no certificate in force, even if one is set."""
    running = await start_plain(tls_certificate="/nonexistent")
    running.reload(grace=1.0)
    assert not [each for each in running.events if "certificate" in each]
    assert running.events.named("settings reloaded")[0]["changed"] == ["grace"]
