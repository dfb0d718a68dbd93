"""What a reload reads, how often, and where."""

import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import trio

import triojam
from tests.fuzz.files import KINDS, TARGETS, good_files, try_one
from tests.helpers.servers import settings_for_test
from triojam.core.admission import parse_networks
from triojam.core.reasons import Reload
from triojam.errors import ConfigurationError
from triojam.settings import files, reading


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
    """An error that nobody listed is a reload that has failed."""
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
