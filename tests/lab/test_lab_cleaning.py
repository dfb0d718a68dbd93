"""What a lab leaves: nothing, also when it is killed; and what it says when it cannot start."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.helpers.program import environment
from tests.helpers.servers import PATIENCE
from tests.lab.labs import LAB_PATIENCE, STUBBORN, command_of, descendants, fake, is_empty, lives, running
from triojam.errors import ConfigurationError, LabError
from triojam.lab import cleaner
from triojam.lab.network import Network, choose_network
from triojam.lab.programs import Program, make_home, parent_folder

NAMES = ("prometheus", "prometheus-alertmanager", "grafana")
SYSTEM = "/usr/bin:/bin"


async def test_a_killed_lab_leaves_nothing(programs: None, temporary: Path) -> None:
    """After SIGKILL, Prometheus, Alertmanager and the server end, and the folder is removed."""
    async with running(temporary) as lab:
        await lab.started()
        assert await lab.ends(signal.SIGKILL) == -signal.SIGKILL


async def test_a_killed_lab_leaves_no_child_of_its_programs(fakes: Path, temporary: Path) -> None:
    """Programs that ignore SIGTERM, and their children, end with a killed lab."""
    fake(fakes, STUBBORN, *NAMES)
    async with running(temporary, PATH=f"{fakes}:{SYSTEM}") as lab:
        await lab.started()
        assert len(list(descendants(lab.process.pid))) == 10
        assert await lab.ends(signal.SIGKILL) == -signal.SIGKILL


async def test_a_lab_killed_during_its_start_leaves_nothing(programs: None, temporary: Path) -> None:
    """A lab that is killed as soon as its folder exists leaves nothing."""
    async with running(temporary) as lab:
        with trio.fail_after(PATIENCE):
            while is_empty(temporary):  # noqa: ASYNC110  # another process sets no Event
                await trio.sleep(0.01)
        lab.process.kill()
        await lab.process.wait()
        with trio.fail_after(LAB_PATIENCE):
            while not is_empty(temporary):  # noqa: ASYNC110  # as above
                await trio.sleep(0.01)


async def test_the_end_of_the_cleaner_ends_the_lab(fakes: Path, temporary: Path) -> None:
    """A lab whose cleaner is killed ends, and removes its folder itself."""
    fake(fakes, STUBBORN, *NAMES[:2])
    async with running(temporary, PATH=f"{fakes}:{SYSTEM}") as lab:
        await lab.started()
        others = list(descendants(lab.process.pid))
        first = next(each for each in others if "cleaner.py" in command_of(each))
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(LAB_PATIENCE):
            assert await lab.process.wait() == 1
        assert await lab.complaint() == "triojam: lab: its cleaner has ended by itself, status -9\n"
        assert is_empty(temporary)
        for each in filter(lives, others):  # children of the stubborn programs
            os.kill(each, signal.SIGKILL)


def test_the_cleaner_ignores_signals(temporary: Path) -> None:
    """Only the end of its lab ends the cleaner: a shutdown signals all processes at once."""
    command = [sys.executable, "-I", str(cleaner.__file__), str(temporary)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline()
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(each)
        assert not is_empty(temporary)
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    assert is_empty(temporary)


@pytest.mark.parametrize(
    ("parent", "reason"),
    [("/proc", "No such file or directory"), ("/nowhere", ""), ("/dev/null", "")],
)
async def test_an_unusable_temporary_folder_is_one_line(
    programs: None, temporary: Path, parent: str, reason: str
) -> None:
    """A folder that is missing, read-only or no folder is named, with the exit status of a wrong setting."""
    async with running(temporary, TMPDIR=parent) as lab:
        assert await lab.ends() == 2
        assert lab.printed == []
        expected = f"triojam: invalid value '{parent}' for TMPDIR: expected a folder to write to"
        complaint = await lab.complaint()
        assert complaint.startswith(expected)
        assert reason in complaint
        assert complaint.count("\n") == 1


def test_no_temporary_folder_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TMPDIR, and without one of the usual folders, the line says what to set."""

    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", fail)
    with pytest.raises(LabError, match=r"lab: No usable .*; set TMPDIR to a folder to write to"):
        parent_folder()


async def test_a_nearly_full_disk_is_one_line(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus would run without its data, so the lab does not start."""
    monkeypatch.setattr("triojam.lab.programs.LEAST_FREE_BYTES", 10**21)
    with pytest.raises(LabError, match=f"lab: {temporary} has [0-9]+ MB of free space, less than 10+ MB"):
        async with make_home(temporary, Network()):
            pass
    assert is_empty(temporary)


def test_a_full_disk_is_one_line(programs: None, temporary: Path) -> None:
    """If a file cannot be written, the line names the folder and the reason; nothing is left."""
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    script = f"{limited}sys.argv = ['triojam', 'lab']; runpy.run_module('triojam', run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(TMPDIR=str(temporary), COVERAGE_PROCESS_CONFIG=""),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LAB_PATIENCE,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"triojam: lab: {temporary}/triojam-lab-")
    assert ended.stderr.endswith(": File too large\n")
    assert ended.stderr.count("\n") == 1
    assert is_empty(temporary)


async def test_a_program_that_cannot_be_executed_is_one_line(tmp_path: Path, temporary: Path) -> None:
    """A program on PATH that the kernel does not execute is named."""
    fake(tmp_path, "no program", "prometheus")
    async with make_home(temporary, Network()) as home:
        program = Program("Prometheus", [str(tmp_path / "prometheus")], home, ("127.0.0.1", 1))
        async with trio.open_nursery() as nursery:
            with pytest.raises(LabError, match="prometheus cannot be started: Exec format error"):
                await nursery.start(program.run)


def test_a_taken_port_is_one_line() -> None:
    """A taken port is named with its flag."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LabError, match=f"lab: port {port} of --grafana-port is already in use"):
            choose_network("127.0.0.1", {"--port": 0, "--grafana-port": port})


@pytest.mark.parametrize("address", ["203.0.113.1", "localhost", "", "::1%lo", "*"])
def test_a_wrong_address_is_one_line(address: str) -> None:
    """An address that is none, or not this machine's, is named with its flag."""
    with pytest.raises(ConfigurationError, match="for --bind: expected an IP address of this machine"):
        choose_network(address, {})


def test_two_programs_with_one_port_are_one_line() -> None:
    """Two flags with the same port contradict each other."""
    port = Network().reserve_port()
    expected = f"invalid value {port} for --grafana-port: expected another port than that of --port"
    with pytest.raises(ConfigurationError, match=expected):
        choose_network("127.0.0.1", {"--port": port, "--grafana-port": port})
