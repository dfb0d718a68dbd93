"""The exchange of the README, with nc."""

import subprocess

import pytest
import trio

from tests.conftest import Start
from tests.helpers.requirements import require_program
from tests.helpers.servers import JAM, PATIENCE


@pytest.fixture
def nc() -> str:
    """The program."""
    return require_program("nc", "netcat-openbsd")


async def test_nc_prints_the_time(nc: str, start_socket: Start) -> None:
    """The command of the README prints the time and ends."""
    running = await start_socket()
    assert running.server is not None
    _, port = running.server.addresses[0]
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            ["sh", "-c", f"printf 'TIME\\r\\n' | {nc} -q1 127.0.0.1 {port}"],
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
        )
    assert ended.stdout == JAM
