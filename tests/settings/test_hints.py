"""What is wrong with settings: hints, contradictions, and all errors at once."""

from pathlib import Path
from typing import Any

import pytest

from triojam.cli.main import main
from triojam.settings.fields import SettingError, Settings


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("--timezone asia/jakarta", "; did you mean Asia/Jakarta?"),
        ("--log-level DEBUG", "; did you mean debug?"),
        ("--idle-timeout 1m", "; did you mean 60?"),
        ("--grace 500ms", "; did you mean 0.5?"),
        ("--allow 10.0.0.1/8", "; did you mean 10.0.0.0/8?"),
        ("--proxies 10.0.0.1/8", "; did you mean 10.0.0.0/8?"),
        ("--deny 192.0.2.0/24,2001:db8::1/32", "; did you mean 2001:db8::/32?"),
        ("--allow 10.0.0.0/33", "separated by commas"),
        ("--timezone nowhere", "an IANA time zone name"),
    ],
)
def test_an_error_names_what_was_meant(words: str, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that is nearly right gets the right one as a hint, and no other value gets one."""
    assert main(["check", *words.split()]) == 2
    assert capsys.readouterr().err.endswith(f"{end}\n")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"port": 45001}, "metrics_port"),
        ({"tls_port": 45000}, "tls_port"),
        ({"metrics_port": 45000, "metrics_host": "*", "host": "127.0.0.1"}, "metrics_port"),
        ({"allow": "10.0.0.0/8", "deny": "10.0.0.0/8"}, "deny"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error(given: dict[str, Any], name: str) -> None:
    """Two listeners on one port of one address, or a network in both lists, are found before serving."""
    with pytest.raises(SettingError) as caught:
        Settings(**given)
    assert caught.value.name == name


@pytest.mark.parametrize(
    "given",
    [
        {"port": 0, "metrics_port": 0, "tls_port": 0},
        {"port": 5000, "host": "192.0.2.1", "metrics_port": 5000, "metrics_host": "192.0.2.2"},
        {"metrics_port": None, "port": 45001},
    ],
)
def test_ports_that_do_not_collide_are_taken(given: dict[str, Any]) -> None:
    """Port 0, other addresses and a listener that is off are no contradiction."""
    assert Settings(**given).port == given["port"]


@pytest.mark.parametrize("name", ["burst_per_source", "max_connections", "error_budget", "max_line_bytes"])
def test_a_number_beyond_any_use_is_refused(name: str) -> None:
    """A number of 22 digits is an error of the setting, and not one of arithmetic later."""
    given: dict[str, Any] = {name: 10**22}
    with pytest.raises(SettingError):
        Settings(**given)


def test_a_rate_too_small_to_count_with_is_refused() -> None:
    """The time between two requests must be a number."""
    with pytest.raises(SettingError):
        Settings(rate_per_source=5e-324)


def test_check_shows_every_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` prints a line for each error of the file; serving prints the first."""
    file = tmp_path / "t.toml"
    file.write_text('port = "45000"\ngrace = -1\nprot = 2\n')
    assert main(["check", "--config", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" for ")[0] for line in lines[:2]] == [
        "triojam: invalid value '45000'", "triojam: invalid value -1",
    ]  # fmt: skip
    assert lines[0].endswith("; write it without quotes")
    assert lines[2].startswith("triojam: unknown setting 'prot'")
    assert main(["--config", str(file)]) == 2
    assert capsys.readouterr().err.splitlines() == lines[:1]


def test_a_byte_order_mark_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Editors of some systems put one at the start of a file."""
    file = tmp_path / "t.toml"
    file.write_bytes(b"\xef\xbb\xbfgrace = 7\n")
    assert main(["check", "--config", str(file)]) == 0
    assert "7.0" in capsys.readouterr().out


def test_a_command_behind_flags_is_told_where_it_belongs(capsys: pytest.CaptureFixture[str]) -> None:
    """The command comes first, and the error says so."""
    assert main(["--port", "5", "check"]) == 2
    assert capsys.readouterr().err == "triojam: the command comes first: triojam check …\n"
