"""The units in deploy/: systemd accepts them, and their sandbox allows what the server needs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.program import serving
from tests.helpers.requirements import require_program
from triojam.errors import ConfigurationError, ListenError
from triojam.settings.fields import FIELDS

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICE = DEPLOY / "triojam.service"
MOST_EXPOSED = 1.6


def analyze(*words: str) -> str:
    """Return what systemd-analyze prints."""
    program = require_program("systemd-analyze", "systemd")
    run = subprocess.run([program, "--no-pager", *words], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def assignments(unit: Path, name: str) -> list[str]:
    """Return each value that a unit gives to `name`, in their order."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text("utf-8"), re.MULTILINE)


def expanded(names: list[str]) -> Iterator[str]:
    """Yield the named system calls, and those in named groups."""
    for name in names:
        if name.startswith("@"):
            lines = analyze("syscall-filter", name).splitlines()[1:]
            yield from expanded([line.strip() for line in lines if not line.strip().startswith("#")])
        elif name:
            yield name


def allowed_calls(unit: Path) -> set[str]:
    """Return the system calls that the unit's filter allows: lists add up, ~ removes (systemd.exec(5))."""
    allowed = set(expanded(["@default"]))
    for value in assignments(unit, "SystemCallFilter"):
        calls = set(expanded(value.removeprefix("~").split()))
        allowed = allowed - calls if value.startswith("~") else allowed | calls
    return allowed


def test_systemd_rates_the_exposure_as_low() -> None:
    """Systemd rates the service's exposure at 1.6 or better."""
    (figure,) = re.findall(
        r"Overall exposure level for triojam.service: ([\d.]+)",
        analyze("security", "--offline=true", str(SERVICE)),
    )
    assert float(figure) <= MOST_EXPOSED


def test_the_sandbox_leaves_the_sources_of_metrics_readable() -> None:
    """The clock stays readable, and /proc/stat, from which the start of the process is read."""
    assert not assignments(SERVICE, "ProtectClock")
    assert not assignments(SERVICE, "ProcSubset")


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """All names and values in the units are known to systemd."""
    for unit in DEPLOY.glob("triojam.*"):
        text = unit.read_text("utf-8").replace("/opt/triojam/bin/triojam", sys.executable)
        (tmp_path / unit.name).write_text(text)
    told = analyze("verify", *map(str, sorted(tmp_path.iterdir())))
    assert "triojam" not in told


def test_the_examples_of_credentials_work(tmp_path: Path) -> None:
    """The commented lines and those of the page are the same, are understood, and set every secret file."""
    lines = re.findall(r"^#((?:LoadCredential|Environment)=.*)$", SERVICE.read_text("utf-8"), re.MULTILINE)
    page = (DEPLOY / "README.md").read_text("utf-8")
    text = SERVICE.read_text("utf-8").replace("/opt/triojam/bin/triojam", sys.executable)
    (tmp_path / SERVICE.name).write_text(
        re.sub(r"^#(LoadCredential|Environment)=", r"\1=", text, flags=re.MULTILINE)
    )
    assert "triojam" not in analyze("verify", str(tmp_path / SERVICE.name))
    loaded = {line.partition("=")[2].partition(":")[0] for line in lines if line.startswith("Load")}
    given = dict(re.findall(r"TRIOJAM_(\w+)=%d/(\S+)", "\n".join(lines)))
    assert set(given) == {"TLS_CERTIFICATE", "TLS_KEY", "TLS_CLIENT_CA", "METRICS_PASSWORDS"}
    assert {name.lower() for name in given} <= FIELDS.keys()
    assert set(given.values()) == loaded
    assert dict(re.findall(r"TRIOJAM_(\w+)=%d/(\S+)", page)) == given
    assert all(line in page for line in lines if line.startswith("Load"))


def test_the_unit_waits_for_the_network_and_starts_again() -> None:
    """Only exit status 2 is for good; an address that is not there yet is status 1."""
    assert "network-online.target" in assignments(SERVICE, "After")
    assert "network-online.target" in assignments(SERVICE, "Wants")
    assert assignments(SERVICE, "Restart") == ["on-failure"]
    assert assignments(SERVICE, "RestartPreventExitStatus") == [str(ConfigurationError.exit_status)]
    assert ListenError.exit_status != ConfigurationError.exit_status


async def test_the_sandbox_allows_what_a_server_needs() -> None:
    """Under the unit's filter a server answers, is scraped, reads the kernel's clock and drains.

    Here a forbidden call kills the server; under systemd the call would only fail.
    """
    calls = sorted(allowed_calls(SERVICE))
    assert "clock_settime" not in calls
    assert {"adjtimex", "clock_adjtime"} <= set(calls)
    async with serving(before=[sys.executable, "-m", "tests.helpers.seccomp", *calls, "--"]) as program:
        async with await program.connect() as client:
            await client.send_all(b"TIME\r\nHELLO\r\n")
            assert (await client.receive_some()).startswith(b"JAM ")
        seen = await program.scrape()
        assert seen.total("triojam_clock_synchronized") in (0, 1)
