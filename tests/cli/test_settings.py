"""A wrong setting gives one line and an exit status, never a traceback; `check` shows the settings."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from tests.helpers.program import COMMAND, environment
from tests.helpers.servers import PATIENCE
from triojam.cli.main import main
from triojam.settings.fields import ADDRESS, Settings

SETTINGS = {each.name: each.metadata["takes"] for each in fields(Settings)}

DURATION = ["-1", "nan", "inf", "ten", ""]
COUNT = ["-1", "1.5", "many", ""]
NETWORKS = ["10.0.0.1/8", "192.0.2.0/33", "here", "10.0.0.0/8;11.0.0.0/8"]
WRONG = {
    "host": ["", '""', "two words"],
    "port": ["-1", "65536", "1.5", "time", ""],
    "metrics_host": ["", '""', "two words"],
    "metrics_names": ["a/b"],
    "metrics_port": ["-1", "65536", "1.5", "nine", ""],
    "tls_port": ["-1", "65536", "1.5", "tls", ""],
    "proxies": NETWORKS,
    "tls_certificate": [],  # tests/serving/test_tls.py tests wrong files
    "tls_key": [],
    "tls_client_ca": [],
    "metrics_tls": ["maybe", "2", ""],
    "metrics_passwords": ["/no/such/file", "/"],
    "timezone": ["Mars/Base", "../../etc/passwd", "/etc/localtime", "Asia", ""],
    "idle_timeout": DURATION,
    "line_timeout": DURATION,
    "send_timeout": DURATION,
    "max_line_bytes": ["5", *COUNT],
    "max_connections": COUNT,
    "allow": NETWORKS,
    "deny": NETWORKS,
    "connections_per_source": COUNT,
    "rate_per_source": DURATION,
    "burst_per_source": ["0", *COUNT],
    "error_budget": COUNT,
    "on_reject": ["shrug", "REPLY", ""],
    "lame_duck": DURATION,
    "grace": DURATION,
    "fast_lane": ["maybe", "2", ""],
    "log_level": ["loud", "INFO", ""],
    "log_format": ["xml", ""],
}
WRONG_VALUES = [pytest.param(name, value, id=f"{name}={value}") for name in WRONG for value in WRONG[name]]

# A settings file, and the words that the error must have beside the path.
WRONG_FILES = [
    # A value of the wrong type is not converted.
    *((line, [line.split()[0]]) for line in (
        "port = 1.5", "port = true", "port = []", "port = {a = 1}", "port = 2020-01-01", "host = 5",
        "host = true", "idle_timeout = [1, 2]", "idle_timeout = true", "idle_timeout = nan",
        "timezone = ['UTC']", "timezone = 7", "log_level = 10", "metrics_port = false", "on_reject = {}",
    )),
    ("[time]\nport = 1", ["time"]),
    ("[check]\nport = 1", ["check"]),
    ("[grace]\nshort = 1", ["grace"]),
    *((line, [line.split()[0]]) for line in (
        "idle_timout = 5", "config = 'other.toml'", "help = true", "HOST = '127.0.0.1'",
    )),
    pytest.param("port = " + "[" * 10_000, [], id="lists too deep for the parser"),
    pytest.param("port." + ".".join("a" * 2_000) + " = 1", [], id="tables too deep to be shown"),
    pytest.param("port = 1" + "0" * 5_000, [], id="more digits than Python reads"),
    pytest.param("port = 0x" + "f" * 5_000, [], id="more digits than Python writes"),
    pytest.param("error_budget = 0x" + "f" * 5_000, [], id="a count too large to be shown"),
    pytest.param("idle_timeout = 1" + "0" * 400, [], id="a number too large for a float"),
    pytest.param("max_connections = 9223372036854775808", [], id="a number too large for TOML"),
    pytest.param('"\\u001b[2J\\n' + "x" * 5_000 + '" = 1', [], id="a key that would clear the screen"),
    pytest.param("port = '" + "1" * 5_000 + "'", [], id="a long value"),
    pytest.param("#" * 2**20 + "\n", [], id="a file larger than 1 MiB"),
]  # fmt: skip

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process: (exit status, text on stdout or stderr)."""
    for name in [each for each in os.environ if each.startswith("TRIOJAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "400")

    def run_it(*words: str, **variables: str) -> tuple[int, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        status = main(words)
        written = capsys.readouterr()
        assert not (written.out and written.err)
        return status, written.err or written.out

    return run_it


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a settings file that does not exist yet."""
    return tmp_path / "t.toml"


def as_flag(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def assert_refused(ended: tuple[int, str], *parts: str) -> None:
    """Check for exit status 2 and one short line of plain text with these parts."""
    status, text = ended
    assert status == 2
    assert text.startswith("triojam: ")
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert len(text) < 1000
    for part in parts:
        assert part in text


def test_every_setting_has_wrong_values() -> None:
    """The table of wrong values has every setting."""
    assert WRONG.keys() == SETTINGS.keys()


@pytest.mark.parametrize("origin", ["flag", "variable", "file"])
@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_a_wrong_value_is_refused(name: str, value: str, origin: str, run: Run, file: Path) -> None:
    """The error has the flag, the variable or the key and its file; the value; and the accepted values."""
    file.write_text(f"{name} = {json.dumps(value)}\n")
    flag, variable = as_flag(name), f"TRIOJAM_{name.upper()}"
    words, variables, source = {
        "flag": ([f"{flag}={value}"], {}, flag),
        "variable": ([], {variable: value}, variable),
        "file": (["--config", str(file)], {}, f"{name} in {file}"),
    }[origin]
    assert_refused(run("check", *words, **variables), f"{source}:", value, SETTINGS[name])


@pytest.mark.parametrize(("text", "parts"), WRONG_FILES)
def test_a_wrong_file_is_refused(text: str, parts: list[str], run: Run, file: Path) -> None:
    """A wrong type, an unknown key or an excess in the file gives an error with the key and the path."""
    file.write_text(text + "\n")
    assert_refused(run("check", "--config", str(file)), str(file), *parts)


@pytest.mark.parametrize(
    "words",
    [
        ["chek"], ["45000"], ["check", "extra"], ["--prot", "1"], ["--zzz", "1"], ["-x"],
        ["check", "--no-grace"], ["TRIOJAM_PROT"], ["TRIOJAM_ZZZ"], ["TRIOJAM_"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_unknown_name_is_refused(words: list[str], run: Run) -> None:
    """The error has the unknown word or variable, and a similar one or the way to all of them."""
    culprit = next(word for word in words if word not in ("check", "1"))
    ended = run("check", **{culprit: "1"}) if culprit.startswith("TRIOJAM_") else run(*words)
    assert_refused(ended, culprit)
    assert re.search(r"did you mean|--help", ended[1], re.IGNORECASE)


@pytest.mark.parametrize(
    "words", [["--port"], ["check", "--grace"], ["--port", "1", "--port", "2"]], ids=" ".join
)
def test_a_flag_needs_one_value(words: list[str], run: Run) -> None:
    """The error has the flag that has no value or two."""
    assert_refused(run(*words), next(word for word in words if word.startswith("--")))


@pytest.mark.parametrize("origin", ["--config", "TRIOJAM_CONFIG"])
@pytest.mark.parametrize("content", [None, b"port = \n", b"\xff\xfe", b"port = 1\nport = 2\n", b"= 5"])
def test_an_unusable_file_is_refused(content: bytes | None, origin: str, run: Run, file: Path) -> None:
    """The error has the path of a missing or malformed file, and the flag or variable with that path."""
    if content is not None:
        file.write_bytes(content)
    words, variables = (["--config", str(file)], {}) if origin == "--config" else ([], {origin: str(file)})
    problem = "no such file" if content is None else "expected a TOML file with settings ("
    assert_refused(run("check", *words, **variables), origin, str(file), problem)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev"])
def test_only_a_file_of_limited_size_is_read(path: str, run: Run) -> None:
    """An endless file and a folder are refused."""
    assert_refused(run("check", "--config", path), path)


def test_a_long_value_is_shown_in_part(run: Run) -> None:
    """The error about a long flag with control characters is one short line, too."""
    assert_refused(run("check", "--port=" + "\x1b\udcff" * 1_000), "--port:", SETTINGS["port"])


@pytest.mark.parametrize("text", ["one\ntwo", "\udcff", "\x1b[2J"], ids=ascii)
@pytest.mark.parametrize("name", ["host", "metrics_host", "tls_key", "metrics_passwords"])
def test_a_text_that_cannot_be_printed_is_refused(name: str, text: str, run: Run) -> None:
    """`check` refuses such a text for a host or a path: it would break the table that `check` prints."""
    assert_refused(run("check", as_flag(name), text), f"{as_flag(name)}:", SETTINGS[name])


def test_check_shows_spaces_in_a_path(run: Run) -> None:
    """`check` shows a path with all of its spaces."""
    _, text = run("check", "--tls-key", "two  words ")
    assert "  two  words   --tls-key" in text


def test_check_shows_networks_in_one_line(run: Run, file: Path) -> None:
    """A list in the file may have several lines; `check` shows it in one."""
    file.write_text('deny = """\n192.0.2.0/24,\n198.51.100.0/24\n"""\n')
    status, text = run("check", "--config", str(file))
    assert status == 0
    assert "192.0.2.0/24, 198.51.100.0/24  deny in" in text


def start(*words: str, **variables: str) -> tuple[int, str]:
    """Run a whole process that must end by itself: (exit status, text on stderr)."""
    ended = subprocess.run(
        [*COMMAND, *words],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def test_a_process_refuses_flag_variable_and_file(file: Path) -> None:
    """A server process with a wrong setting writes the one line and exits with status 2."""
    file.write_text("grace = -1\n")
    assert_refused(start("--port", "x"), "--port:")
    assert_refused(start(TRIOJAM_PORT="x"), "TRIOJAM_PORT:")
    assert_refused(start("--config", str(file)), f"grace in {file}:")


@pytest.mark.parametrize("flag", ["--host", "--metrics-host"])
def test_a_process_refuses_an_unknown_host(flag: str) -> None:
    """A name that cannot exist is a wrong setting: the error has it, with the accepted values."""
    assert_refused(start("--port", "0", "--metrics-port", "0", flag, "x" * 64), f"{flag}:", "xxx", ADDRESS)


# Addresses for documentation (RFC 5737 and 3849), which no machine has.
@pytest.mark.parametrize("flag", ["--host", "--metrics-host"])
@pytest.mark.parametrize("host", ["203.0.113.1", "2001:db8::1"])
def test_a_process_may_try_again_for_an_address_that_is_not_there_yet(flag: str, host: str) -> None:
    """An address that the machine does not have gives one line, and exit status 1: it may come later."""
    status, text = start("--port", "0", "--metrics-port", "0", flag, host)
    shown = f"[{host}]" if ":" in host else host
    assert status == 1
    reason = "this machine does not have the address, or not yet"
    assert text == f"triojam: cannot listen on {shown}:0: {reason}\n"


def test_check_names_every_host_that_serving_refuses(run: Run) -> None:
    """`check` listens on a free port of each host, and names the settings whose hosts cannot be used."""
    status, text = run("check", "--host", "203.0.113.1", TRIOJAM_METRICS_HOST="x" * 64)
    first, second = text.splitlines()
    assert status == 2
    assert first == (
        f"triojam: invalid value '203.0.113.1' for --host: expected {ADDRESS}"
        " (this machine does not have the address, or not yet)"
    )
    assert second == f"triojam: invalid value '{'x' * 64}' for TRIOJAM_METRICS_HOST: expected {ADDRESS}"


def test_check_shows_a_bad_host_beside_a_bad_file(run: Run) -> None:
    """A host and a file that cannot be used are two lines."""
    status, text = run("check", "--host", "203.0.113.1", "--metrics-passwords", "/no/such/file")
    assert (status, text.count("\n")) == (2, 2)
    assert "--host" in text
    assert "--metrics-passwords" in text


def test_check_needs_no_host_for_a_listener_that_is_off(run: Run) -> None:
    """The metrics host does not matter without a metrics port."""
    assert run("check", "--metrics-host", "203.0.113.1", "--metrics-port", "none")[0] == 0


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_process_refuses_a_port_in_use(flag: str) -> None:
    """A port in use gives one line with address and port, and exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"--port": "0", "--metrics-port": "0", flag: str(port)}
        status, text = start("--host", "127.0.0.1", *(word for pair in ports.items() for word in pair))
    assert status == 1
    assert text == f"triojam: cannot listen on 127.0.0.1:{port}: the port is already in use\n"


def test_check_shows_the_origin_of_each_value(run: Run, file: Path) -> None:
    """A flag overrides a variable, a variable the file, the file the default; `check` shows which one won."""
    file.write_text("idle_timeout = 1\nline_timeout = 1\nsend_timeout = 1\nmetrics_port = 'none'\n")
    words = ("check", "--config", str(file), "--send-timeout", "3")
    status, text = run(*words, TRIOJAM_LINE_TIMEOUT="2", TRIOJAM_SEND_TIMEOUT="2")
    assert status == 0
    shown = {line.split()[0]: line.split(maxsplit=2)[1:] for line in text.splitlines()}
    assert shown.keys() == SETTINGS.keys()
    assert shown["idle_timeout"] == ["1.0", f"idle_timeout in {file}"]
    assert shown["line_timeout"] == ["2.0", "TRIOJAM_LINE_TIMEOUT"]
    assert shown["send_timeout"] == ["3.0", "--send-timeout"]
    assert shown["grace"] == ["5.0", "default"]
    assert shown["metrics_port"] == ["none", f"metrics_port in {file}"]


def test_a_variable_can_name_the_file(run: Run, tmp_path: Path) -> None:
    """TRIOJAM_CONFIG names the file like --config, and --config overrides it."""
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text("grace = 1\n")
    other.write_text("grace = 2\n")
    assert f"grace in {one}" in run("check", TRIOJAM_CONFIG=str(one))[1]
    assert f"grace in {other}" in run("check", "--config", str(other), TRIOJAM_CONFIG=str(one))[1]


def test_help_shows_every_setting(run: Run) -> None:
    """--help has the flag, the variable and the meaning of every setting, and of the file."""
    status, text = run("--help")
    assert status == 0
    for each in fields(Settings):
        assert f"{as_flag(each.name)} " in text
        assert f"TRIOJAM_{each.name.upper()}]" in text
        assert each.metadata["help"] in text
    assert text.count("TRIOJAM_CONFIG") == 1
