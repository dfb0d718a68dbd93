"""What an operator can get wrong: one line, an exit status, never a traceback. And how settings are shown."""

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
    "metrics_port": ["-1", "65536", "1.5", "nine", ""],
    "tls_port": ["-1", "65536", "1.5", "tls", ""],
    "tls_certificate": [],  # what is wrong with a file, tests/serving/test_tls.py looks at
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

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process: (exit status, what it wrote to either stdout or stderr)."""
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


def assert_refused(ended: tuple[int, str], *parts: str) -> None:
    """Hold one run against the rule: exit status 2 and one line that has these parts."""
    status, text = ended
    assert status == 2
    assert text.startswith("triojam: ")
    assert text.count("\n") == 1
    for part in parts:
        assert part in text


def test_every_setting_has_wrong_values() -> None:
    """No setting is missing from the table of wrong values."""
    assert WRONG.keys() == SETTINGS.keys()


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_wrong_flag(name: str, value: str, run: Run) -> None:
    """A wrong flag is named, with its value and what it takes."""
    flag = f"--{name.replace('_', '-')}"
    assert_refused(run("check", f"{flag}={value}"), f"{flag}:", value, SETTINGS[name])


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_wrong_variable(name: str, value: str, run: Run) -> None:
    """A wrong variable is named, with its value and what it takes."""
    variable = f"TRIOJAM_{name.upper()}"
    assert_refused(run("check", **{variable: value}), f"{variable}:", value, SETTINGS[name])


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_wrong_key(name: str, value: str, run: Run, tmp_path: Path) -> None:
    """A wrong value in the file is named by key and file, with what it takes."""
    file = tmp_path / "t.toml"
    file.write_text(f"{name} = {json.dumps(value)}\n")
    assert_refused(run("check", "--config", str(file)), f"{name} in {file}:", value, SETTINGS[name])


@pytest.mark.parametrize(
    "line",
    [
        "port = 1.5", "port = true", "port = []", "port = {a = 1}", "port = 2020-01-01", "host = 5",
        "host = true", "idle_timeout = [1, 2]", "idle_timeout = true", "idle_timeout = nan",
        "timezone = ['UTC']", "timezone = 7", "log_level = 10", "metrics_port = false", "on_reject = {}",
    ],
)  # fmt: skip
def test_wrong_type_in_the_file(line: str, run: Run, tmp_path: Path) -> None:
    """A value of a type that the setting does not have is refused, not made to fit."""
    file = tmp_path / "t.toml"
    file.write_text(line + "\n")
    name = line.split(maxsplit=1)[0]
    assert_refused(run("check", "--config", str(file)), name, str(file))


@pytest.mark.parametrize(
    "words",
    [
        ["chek"],
        ["45000"],
        ["check", "extra"],
        ["--prot", "1"],
        ["--zzz", "1"],
        ["-x"],
        ["check", "--no-grace"],
    ],
    ids=" ".join,
)
def test_unknown_words(words: list[str], run: Run) -> None:
    """A word that means nothing is named, with one that does or the way to all of them."""
    status, text = run(*words)
    culprit = next(word for word in words if word not in ("check", "1"))
    assert_refused((status, text), culprit)
    assert re.search(r"did you mean|--help", text, re.IGNORECASE)


@pytest.mark.parametrize(
    "words", [["--port"], ["check", "--grace"], ["--port", "1", "--port", "2"]], ids=" ".join
)
def test_flags_without_one_value(words: list[str], run: Run) -> None:
    """A flag that has no value, or two, is named."""
    assert_refused(run(*words), next(word for word in words if word.startswith("--")))


@pytest.mark.parametrize("variable", ["TRIOJAM_PROT", "TRIOJAM_ZZZ", "TRIOJAM_"])
def test_unknown_variables(variable: str, run: Run) -> None:
    """A variable with our prefix that is no setting is named, with one that is or the way to all of them."""
    status, text = run("check", **{variable: "1"})
    assert_refused((status, text), f"{variable}:")
    assert re.search(r"did you mean|--help", text)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("idle_timout = 5", "idle_timout"),
        ("[time]\nport = 1", "time"),
        ("[check]\nport = 1", "check"),
        ("[grace]\nshort = 1", "grace"),
        ("config = 'other.toml'", "config"),
        ("help = true", "help"),
        ("HOST = '127.0.0.1'", "HOST"),
    ],
)
def test_unknown_keys(text: str, culprit: str, run: Run, tmp_path: Path) -> None:
    """A key of the file that is no setting is named, with the file."""
    file = tmp_path / "t.toml"
    file.write_text(text + "\n")
    assert_refused(run("check", "--config", str(file)), culprit, str(file))


@pytest.mark.parametrize("origin", ["--config", "TRIOJAM_CONFIG"])
@pytest.mark.parametrize("content", [None, b"port = \n", b"\xff\xfe", b"port = 1\nport = 2\n", b"= 5"])
def test_unusable_files(content: bytes | None, origin: str, run: Run, tmp_path: Path) -> None:
    """A settings file that is missing or no TOML is named, and so is who named it."""
    file = tmp_path / "t.toml"
    if content is not None:
        file.write_bytes(content)
    ended = (
        run("check", "--config", str(file))
        if origin == "--config"
        else run("check", TRIOJAM_CONFIG=str(file))
    )
    assert_refused(
        ended,
        origin,
        str(file),
        "no such file" if content is None else "expected a TOML file with settings (",
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("port = " + "[" * 10_000, id="lists too deep for the parser"),
        pytest.param("port." + ".".join("a" * 2_000) + " = 1", id="tables too deep to be shown"),
        pytest.param("port = 1" + "0" * 5_000, id="more digits than Python reads"),
        pytest.param("port = 0x" + "f" * 5_000, id="more digits than Python writes"),
        pytest.param("error_budget = 0x" + "f" * 5_000, id="a count that cannot be shown"),
        pytest.param("idle_timeout = 1" + "0" * 400, id="more than a float holds"),
        pytest.param("max_connections = 9223372036854775808", id="a whole number that is none in TOML"),
        pytest.param('"\\u001b[2J\\n' + "x" * 5_000 + '" = 1', id="a key that would clear the screen"),
        pytest.param("port = '" + "1" * 5_000 + "'", id="a long value"),
        pytest.param("#" * 2**20 + "\n", id="a file of more than a MiB"),
    ],
)
def test_files_that_are_too_much(text: str, run: Run, tmp_path: Path) -> None:
    """However deep, large or odd a file is, the error is one line of plain text that fits a screen."""
    file = tmp_path / "t.toml"
    file.write_text(text)
    status, line = run("check", "--config", str(file))
    assert_refused((status, line), str(file))
    assert line.removesuffix("\n").isprintable()
    assert len(line) < 1000


def test_an_endless_file(run: Run) -> None:
    """A file is read only as far as settings may take."""
    assert_refused(run("check", "--config", "/dev/zero"), "/dev/zero")


def test_a_long_or_odd_word_is_shown_in_part(run: Run) -> None:
    """The error about a flag is one line of plain text, too, and still says what is wrong."""
    status, line = run("check", "--port=" + "\x1b\udcff" * 1_000)
    assert_refused((status, line), "--port:", SETTINGS["port"])
    assert line.removesuffix("\n").isprintable()
    assert len(line) < 1000


@pytest.mark.parametrize("text", ["one\ntwo", "\udcff", "\x1b[2J"], ids=ascii)
@pytest.mark.parametrize("name", ["host", "metrics_host", "tls_key", "metrics_passwords"])
def test_texts_that_cannot_be_printed(name: str, text: str, run: Run) -> None:
    """`check` does not pass what no host or file should be called, and what would break its own table."""
    flag = f"--{name.replace('_', '-')}"
    assert_refused(run("check", flag, text), f"{flag}:", SETTINGS[name])


def test_spaces_in_a_path(run: Run) -> None:
    """`check` shows a path as it is, to the last space."""
    _, text = run("check", "--tls-key", "two  words ")
    assert "  two  words   --tls-key" in text


def test_networks_over_many_lines(run: Run, tmp_path: Path) -> None:
    """A list may be a text of many lines; `check` shows it in one."""
    file = tmp_path / "t.toml"
    file.write_text('deny = """\n192.0.2.0/24,\n198.51.100.0/24\n"""\n')
    status, text = run("check", "--config", str(file))
    assert status == 0
    assert "192.0.2.0/24, 198.51.100.0/24  deny in" in text


def test_a_folder_is_no_settings_file(run: Run, tmp_path: Path) -> None:
    """A folder instead of a settings file is named."""
    assert_refused(run("check", "--config", str(tmp_path)), str(tmp_path))


def start(*words: str, **variables: str) -> tuple[int, str]:
    """Run a whole process that is to end by itself: (exit status, what it wrote to stderr)."""
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


def test_a_process_refuses_flag_variable_and_file(tmp_path: Path) -> None:
    """A whole process that is to serve with a wrong setting writes the one line and exits with 2."""
    file = tmp_path / "t.toml"
    file.write_text("grace = -1\n")
    assert_refused(start("--port", "x"), "--port:")
    assert_refused(start(TRIOJAM_PORT="x"), "TRIOJAM_PORT:")
    assert_refused(start("--config", str(file)), f"grace in {file}:")


# An address for documentation (RFC 5737), which no machine has; and a name too long to ask the DNS for.
@pytest.mark.parametrize(("flag", "host"), [("--host", "192.0.2.1"), ("--metrics-host", "x" * 64)])
def test_addresses_of_other_machines(flag: str, host: str) -> None:
    """A host that cannot be listened on is a wrong setting: named, with what it takes."""
    assert_refused(start("--port", "0", "--metrics-port", "0", flag, host), f"{flag}:", host, ADDRESS)


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_ports_in_use(flag: str) -> None:
    """A port that is in use is one line with address and port, and exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"--port": "0", "--metrics-port": "0", flag: str(port)}
        status, text = start("--host", "127.0.0.1", *(word for pair in ports.items() for word in pair))
    assert status == 1
    assert text == f"triojam: cannot listen on 127.0.0.1:{port}: the port is already in use\n"


def test_precedence_and_origins(run: Run, tmp_path: Path) -> None:
    """A flag stands above a variable, that above the file, that above the default; check says which."""
    file = tmp_path / "t.toml"
    file.write_text("idle_timeout = 1\nline_timeout = 1\nsend_timeout = 1\nmetrics_port = 'none'\n")
    status, text = run(
        "check",
        "--config",
        str(file),
        "--send-timeout",
        "3",
        TRIOJAM_LINE_TIMEOUT="2",
        TRIOJAM_SEND_TIMEOUT="2",
    )
    assert status == 0
    shown = {line.split(maxsplit=2)[0]: line.split(maxsplit=2)[1:] for line in text.splitlines()}
    assert shown.keys() == SETTINGS.keys()
    assert shown["idle_timeout"] == ["1.0", f"idle_timeout in {file}"]
    assert shown["line_timeout"] == ["2.0", "TRIOJAM_LINE_TIMEOUT"]
    assert shown["send_timeout"] == ["3.0", "--send-timeout"]
    assert shown["grace"] == ["5.0", "default"]
    assert shown["metrics_port"] == ["none", f"metrics_port in {file}"]


def test_the_file_can_come_from_a_variable(run: Run, tmp_path: Path) -> None:
    """TRIOJAM_CONFIG names the file as --config does, and --config stands above it."""
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
        assert f"--{each.name.replace('_', '-')} " in text
        assert f"TRIOJAM_{each.name.upper()}]" in text
        assert each.metadata["help"] in text
    assert text.count("TRIOJAM_CONFIG") == 1
