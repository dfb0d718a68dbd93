"""`triojam load` as a whole program: where its output goes, and what its environment may not change."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import trio

from tests.helpers.pages import ROOT
from tests.helpers.program import COMMAND, environment, serving
from tests.helpers.servers import PATIENCE, start_tls


async def load(address: tuple[Any, ...], *words: str) -> tuple[int, str, str]:
    """Run `triojam load`, and return its exit status, its output, and its errors."""
    done = await run([*COMMAND, "load", f"{address[0]}:{address[1]}", *words])
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def run(
    command: list[str], cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    with trio.fail_after(3 * PATIENCE):
        return await trio.run_process(
            command,
            check=False,
            capture_stdout=True,
            capture_stderr=True,
            cwd=cwd,
            env=environment(**variables),
        )


async def test_every_shows_the_last_part_too() -> None:
    """The last line of progress comes with the end of the workers."""
    async with serving() as program:
        status, shown, _ = await load(program.address, "--rate=50", "--duration=1", "--every=0.4")
    ends = [float(each) for each in re.findall(r"^([\d.]+) s  ", shown, re.MULTILINE)]
    assert status == 0
    assert ends[-1] >= 0.95
    assert ends == sorted(ends)


async def test_a_full_disk_behind_standard_output_is_named() -> None:
    """JSON that cannot be written to standard output is an error of one line, without a file name."""
    async with serving() as program:
        host, port = program.address[:2]
        command = shlex.join([*COMMAND, "load", f"{host}:{port}", "--requests=5", "--json=-"])
        done = await run(["sh", "-c", f"{command} > /dev/full"])
    assert done.returncode == 1
    assert done.stderr.endswith(b"\ntriojam: No space left on device\n")


async def test_a_module_in_the_working_directory_is_not_imported(tmp_path: Path) -> None:
    """The workers import from where their parent does."""
    await trio.Path(tmp_path / "random.py").write_text("raise SystemExit('not this one')", "utf-8")
    async with serving() as program:
        host, port = program.address[:2]
        # -P: as an installed program, which does not look into the working directory.
        command = [COMMAND[0], "-P", "-m", "triojam", "load", f"{host}:{port}", "--requests=5"]
        done = await run(command, tmp_path, PYTHONPATH=str(ROOT / "src"))
    assert (done.returncode, done.stderr) == (0, b"")


async def test_load_names_a_port_that_speaks_tls(nursery: trio.Nursery) -> None:
    """The server closes the connection without a byte; another connection shows that it speaks TLS."""
    server = await start_tls(nursery)
    assert server.server is not None
    address = server.server.tls_addresses[0]
    status, shown, errors = await load(address)
    assert (status, shown) == (1, "")
    assert errors == f"triojam: {address[0]}:{address[1]}: speaks TLS: try it with --tls\n"
