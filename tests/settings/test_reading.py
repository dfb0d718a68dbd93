"""What a reload reads, how often, and where."""

import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import trio

import triojam
import triojam.server
from tests.fuzz.files import KINDS, TARGETS, good_files, try_one
from tests.helpers.servers import settings_for_test
from triojam.core.admission import parse_networks
from triojam.core.reasons import Reload
from triojam.errors import ConfigurationError
from triojam.settings import files, reading
from triojam.settings.sources import MOST_PROBLEMS, read_settings_file


@pytest.mark.parametrize("target", range(len(TARGETS)), ids=TARGETS)
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_any_kind_of_file_is_used_or_refused(target: int, kind: int) -> None:
    """A file of any kind, cut, changed or foreign, is used, or is an error of one line."""
    for how in range(4):
        for more in (b"", b"\x00\x05junk", b"\xff\xff", b"\x01\x00" + bytes(64)):
            try_one(bytes([target, kind, how]) + more)


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced meanwhile cannot be half old and half new."""
    read: Counter[str] = Counter()

    def counting(path: str) -> bytes:
        read[path] += 1
        return reading.read_bounded(path)

    monkeypatch.setattr(files, "read_bounded", counting)
    named = {}
    for name in ("tls_certificate", "tls_key", "tls_client_ca", "metrics_passwords"):
        named[name] = str(tmp_path / name)
        (tmp_path / name).write_bytes(good_files()[name])
    files.load_files(triojam.Settings(**named, tls_port=0, metrics_tls=True))  # type: ignore[arg-type]  # paths
    assert read == dict.fromkeys(named.values(), 1)


async def test_a_reload_works_outside_of_the_event_loop(nursery: trio.Nursery) -> None:
    """Settings are read and tens of thousands of networks parsed, once, in another thread."""
    server: triojam.Server = await nursery.start(triojam.serve, settings_for_test())
    networks = ",".join(f"10.{number // 256}.{number % 256}.0/24" for number in range(20_000))
    threads = []

    def read() -> triojam.Settings:
        threads.append(threading.get_ident())
        return settings_for_test(deny=networks)

    misses = parse_networks.cache_info().misses
    await server.reload_from(read)
    assert threads != [threading.get_ident()]
    assert parse_networks.cache_info().misses - misses == 1
    assert server._service.admission.refusal("10.0.1.1", full=False) is not None
    server.drain()


@pytest.mark.parametrize(
    "failure", [MemoryError(), OSError(5, "Input/output error"), RecursionError(), KeyError("x")]
)
async def test_whatever_a_reload_meets_the_server_serves_on(
    failure: Exception, nursery: trio.Nursery
) -> None:
    """Any unforeseen error is a reload that has failed."""
    server: triojam.Server = await nursery.start(triojam.serve, settings_for_test())

    def read() -> triojam.Settings:
        raise failure

    with pytest.raises(ConfigurationError, match="the settings and their files cannot be read"):
        await server.reload_from(read)
    assert server.counters.config_reloads[Reload.FAILURE] == 1
    server.drain()


async def test_a_reload_that_is_given_up_has_changed_nothing(nursery: trio.Nursery) -> None:
    """What a reload does in its thread changes neither the server nor the process: it may end much later."""
    server: triojam.Server = await nursery.start(triojam.serve, settings_for_test(timezone="system"))
    before = (dict(os.environ), time.localtime(0), vars(server).copy())
    await trio.to_thread.run_sync(server._prepare, settings_for_test(timezone="Asia/Jakarta", grace=9.0))
    await trio.to_thread.run_sync(server._prepare, settings_for_test(timezone="system", port=1))
    assert (dict(os.environ), time.localtime(0), vars(server)) == before
    server.drain()


async def test_a_reload_that_does_not_end_is_refused_and_so_is_the_next(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a thread still reads, no second one comes beside it; when it has ended, a reload works again."""
    monkeypatch.setattr(triojam.server, "READ_SECONDS", 0.05)
    server: triojam.Server = await nursery.start(triojam.serve, settings_for_test())
    may_end, began = threading.Event(), []

    def never_ends() -> triojam.Settings:
        began.append(True)
        may_end.wait()
        return settings_for_test()

    for _ in range(3):
        with pytest.raises(ConfigurationError, match=r"were not read within 0\.05 s"):
            await server.reload_from(never_ends)
    assert len(began) == 1
    may_end.set()
    monkeypatch.setattr(triojam.server, "READ_SECONDS", 60.0)
    await server.reload_from(settings_for_test)
    server.drain()


@pytest.mark.parametrize("text", ["a" + ".a" * 400_000 + " = 1\n", "[" + "a." * 1000 + "a]\n"])
def test_a_key_of_too_many_parts_is_refused_before_it_is_parsed(text: str, tmp_path: Path) -> None:
    """Such a key would keep the parser busy for minutes."""
    file = tmp_path / "t.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="a key of too many parts"):
        read_settings_file(str(file), "--config")


@pytest.mark.parametrize("name", ["allow", "deny", "proxies"])
def test_lists_of_networks_are_no_keys(tmp_path: Path, name: str) -> None:
    """A line of addresses has many dots, and is taken."""
    file = tmp_path / "t.toml"
    file.write_text(f"{name} = [\n" + ", ".join(f'"10.1.{number}.0/24"' for number in range(60)) + "\n]\n")
    assert read_settings_file(str(file), "--config")[name].count("/24") == 60


def test_the_errors_of_a_file_are_as_many_as_a_person_reads(tmp_path: Path) -> None:
    """Of 90,000 unknown keys, the first hundred are errors."""
    file = tmp_path / "t.toml"
    file.write_text("".join(f"k{number} = 1\n" for number in range(90_000)))
    with pytest.raises(ConfigurationError) as caught:
        read_settings_file(str(file), "--config")
    assert len(caught.value.more) == MOST_PROBLEMS - 1
