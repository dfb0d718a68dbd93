"""SIGHUP with files that are cut off, replaced, or no files: the server serves on, with what it had."""

import os
import signal
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import trio

from tests.fuzz.files import good_files
from tests.helpers.program import COMMAND, FREE_PORTS, Program, environment, launched, serving
from tests.helpers.servers import PATIENCE, receive_exactly
from tests.helpers.sockets import JAM_BYTES
from triojam.cli.main import main

DAMAGES: Mapping[str, Callable[[Path, bytes], object]] = {
    "cut off": lambda path, good: path.write_bytes(good[: len(good) // 2]),
    "empty": lambda path, _good: path.touch(),
    "no text": lambda path, _good: path.write_bytes(b"\xff\xfe\x00" * 100),
    "too long": lambda path, good: path.write_bytes(good + b"#" * 2_000_000),
    "a folder": lambda path, _good: path.mkdir(),
    "a FIFO": lambda path, _good: os.mkfifo(path),
    "a device without end": lambda path, _good: path.symlink_to("/dev/zero"),
    "a circle of links": lambda path, _good: path.symlink_to(path),
    "missing": lambda _path, _good: None,
}


def remove(path: Path) -> None:
    """Remove a file of any kind, if there is one."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


async def asks(program: Program) -> bytes:
    """Ask once, and return the answer."""
    async with await program.connect() as client:
        await client.send_all(b"TIME\r\n")
        return await receive_exactly(client, JAM_BYTES)


FILES: Mapping[str, str] = {
    "tls_certificate": "certificate.pem",
    "tls_key": "key.pem",
    "tls_client_ca": "authority.pem",
    "metrics_passwords": "users",
    "settings": "triojam.toml",
    "zone": "zones/Test/Zone",
}


@pytest.mark.parametrize("damaged", FILES)
async def test_a_damaged_file_changes_nothing(damaged: str, tmp_path: Path) -> None:
    """Whatever a file has become, SIGHUP is one line that says so, and the server answers as before."""
    paths = {name: tmp_path / file for name, file in FILES.items()}
    paths["zone"].parent.mkdir(parents=True)
    for name, path in paths.items():
        path.write_bytes(good_files()[name])
    words = [f"--{name.replace('_', '-')}={paths[name]}" for name in FILES if name.startswith("tls")]
    words += ["--tls-port=0", "--timezone=Test/Zone", f"--config={paths['settings']}"]
    if damaged == "metrics_passwords":
        words += [f"--metrics-passwords={paths[damaged]}"]
    async with serving(*words, PYTHONTZPATH=str(tmp_path / "zones")) as program:
        for what, make in DAMAGES.items():
            if damaged == "settings" and what in ("empty", "cut off"):
                continue  # both are settings files
            remove(paths[damaged])
            make(paths[damaged], good_files()[damaged])
            program.process.send_signal(signal.SIGHUP)
            failed = await program.logged("settings not reloaded, the old ones stay")
            assert failed["reason"].isprintable(), what
            assert (await asks(program)).startswith(b"JAM "), what
        remove(paths[damaged])
        paths[damaged].write_bytes(good_files()[damaged])
        program.process.send_signal(signal.SIGHUP)
        await program.logged("settings reloaded")
        if damaged == "metrics_passwords":
            program.process.kill()  # its metrics, which would be held to the end, want a password
            await program.process.wait()


JAKARTA = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lBB", 7 * 3600, 0, 0)
JAKARTA += b"WIB\0"
# New content for each file that a setting names.
RENEWALS: Mapping[str, Callable[[bytes], bytes]] = {
    "tls_certificate": lambda good: good + good_files()["tls_client_ca"],
    "tls_key": lambda good: good + b"\n",
    "tls_client_ca": lambda good: good + good,
    "metrics_passwords": lambda good: good + good.replace(b"alice", b"bob"),
    "timezone": lambda _good: JAKARTA,
}


@pytest.mark.parametrize("system", [False, True], ids=["named zone", "system zone"])
async def test_a_reload_names_each_setting_whose_file_has_changed(tmp_path: Path, *, system: bool) -> None:
    """Without a new value of any setting, SIGHUP says for which settings it applied new content."""
    paths = {name: tmp_path / FILES[name] for name in FILES if name in RENEWALS}
    paths["timezone"] = tmp_path / FILES["zone"]
    paths["timezone"].parent.mkdir(parents=True)
    for name, path in paths.items():
        path.write_bytes(good_files()["zone" if name == "timezone" else name])
    words = [f"--{name.replace('_', '-')}={path}" for name, path in paths.items() if name != "timezone"]
    words += ["--tls-port=0", f"--timezone={'system' if system else 'Test/Zone'}"]
    zones = {"TZ": f":{paths['timezone']}"} if system else {"PYTHONTZPATH": str(tmp_path / "zones")}
    async with serving(*words, **zones) as program:
        for name, renew in RENEWALS.items():
            paths[name].write_bytes(renew(paths[name].read_bytes()))
            program.process.send_signal(signal.SIGHUP)
            assert (await program.logged("settings reloaded"))["changed"] == [name]
        program.process.send_signal(signal.SIGHUP)
        assert (await program.logged("settings reloaded"))["changed"] == []
        program.process.kill()  # its metrics, which would be held to the end, want a password
        await program.process.wait()


async def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """Settings from a pipe are used; SIGHUP says that they cannot be read again, and they stay."""
    reading, writing = os.pipe()
    os.write(writing, b'timezone = "Asia/Jakarta"\n')
    os.close(writing)
    command = [*COMMAND, *FREE_PORTS, f"--config=/dev/fd/{reading}"]
    async with launched(command, {}, pass_fds=[reading]) as process:
        os.close(reading)
        program = Program(process)
        started = await program.logged("serving")
        assert started["addresses"]
        process.send_signal(signal.SIGHUP)
        failed = await program.logged("settings not reloaded, the old ones stay")
        assert f"/dev/fd/{reading}" in failed["reason"]
        process.terminate()
        assert await program.ended() == 0


async def test_a_file_of_keys_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """SSLKEYLOGFILE in a folder that has gone is an error of the reload, and names the variable."""
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("tls_certificate", "tls_key"):
        (tmp_path / FILES[name]).write_bytes(good_files()[name])
    words = ["--tls-port=0", f"--tls-certificate={tmp_path}/certificate.pem", f"--tls-key={tmp_path}/key.pem"]
    async with serving(*words, SSLKEYLOGFILE=str(folder / "log")) as program:
        (folder / "log").unlink(missing_ok=True)
        folder.rmdir()
        program.process.send_signal(signal.SIGHUP)
        failed = await program.logged("settings not reloaded, the old ones stay")
        assert failed["reason"].startswith(f"invalid value '{folder}/log' for SSLKEYLOGFILE: expected a file")
        assert (await asks(program)).startswith(b"JAM ")


def test_a_client_blames_the_file_of_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ask --tls` names SSLKEYLOGFILE, and not a --ca that was not given."""
    monkeypatch.setenv("SSLKEYLOGFILE", "/nonexistent/log")
    assert main(["ask", "--tls", "127.0.0.1:1"]) == 2
    assert "for SSLKEYLOGFILE: expected a file that can be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["check", "--tls-port=0"], ["--tls-port=0"], ["ask", "--tls", "127.0.0.1:1"]]
)
async def test_a_fifo_for_keys_is_refused(words: list[str], tmp_path: Path) -> None:
    """Opening a FIFO would wait for its reader for ever, and no signal would end that."""
    os.mkfifo(tmp_path / "keys")
    (tmp_path / "c.pem").write_bytes(good_files()["tls_certificate"] + good_files()["tls_key"])
    if words[0] != "ask":
        words = [*words, f"--tls-certificate={tmp_path}/c.pem"]
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            [*COMMAND, *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(SSLKEYLOGFILE=str(tmp_path / "keys")),
        )
    assert ended.returncode == 2
    assert b"for SSLKEYLOGFILE: expected a file that can be written (not a regular file)" in ended.stderr
