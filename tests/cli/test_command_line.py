"""The command line as a person meets it: its help, its version, and its error lines."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.helpers.servers import authority
from triojam.cli.main import main
from triojam.settings.fields import GROUPS
from triojam.version import __version__

SERVER_LIBRARIES = {"trio", "structlog", "prometheus_client", "bcrypt", "h11"}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--port 70000", "invalid value '70000' for --port: expected a port from 0 to 65535"),
        ("--port x", "invalid value 'x' for --port: expected a port from 0 to 65535"),
        ("--port", "no value for --port: expected a port from 0 to 65535"),
        ("--port 1 --port 2", "more than one value for --port: expected one"),
        ("--prot 1", "unknown option --prot: did you mean --port?"),
        ("check --prot 1", "unknown option --prot: did you mean --port?"),
        ("serv", "unknown command 'serv': did you mean serve?"),
        ("xyzzy", "unknown command 'xyzzy': see triojam --help"),
        ("--max-connections 1.5", "invalid value '1.5' for --max-connections: expected a whole number,"),
        ("--on-reject maybe", "invalid value 'maybe' for --on-reject: expected reply or close"),
        ("ask --tmeout 1", "unknown option --tmeout: did you mean --timeout?"),
        ("ask --timeout", "no value for --timeout: expected a number"),
        ("ask --timeout soon", "invalid value 'soon' for --timeout: expected a number"),
        ("ask --timeout nan", "invalid value 'nan' for --timeout: expected a number above 0"),
        ("ask a:b:c", "invalid value 'a:b:c' for SERVERS: expected HOST or HOST:PORT, as in [::1]:45000"),
        (
            "load --rate inf",
            "invalid value 'inf' for --rate: expected requests a second, above 0 and up to 1,000,000, or",
        ),
        ("load --rate 5:", "invalid value '5:' for --rate: expected requests a second, above 0"),
        ("load --rate 1:2:3", "invalid value '1:2:3' for --rate: expected requests a second, above 0"),
        ("load --rate 0:9", "invalid value '0:9' for --rate: expected requests a second, above 0"),
        ("load --workers 51", "invalid value '51' for --workers: expected not more than --connections (50)"),
        (
            "load --workers 65 --connections 99",
            "invalid value '65' for --workers: expected a whole number from 1 to 64",
        ),
        ("load --connections 99999999", "invalid value '99999999' for --connections: expected up to "),
        ("load --find x", "invalid value 'x' for --find: expected QUANTITY<LIMIT"),
        ("load --fail p99", "invalid value 'p99' for --fail: expected QUANTITY<LIMIT"),
        ("load --find rate>5", "invalid value 'rate>5' for --find: expected a latency or failed with < or"),
        ("load --find p99<1s --requests 5", "--requests is not for --find"),
        ("load --find p99<1s --fail p99<1s", "--fail is not for --find"),
        ("load --find p99<1s --rate 1:2", "invalid value '1:2' for --rate: expected one rate, at which"),
        ("load --json /", "invalid value '/' for --json: expected a file that can be written (is a dir"),
        ("load --plot x.pdf", "invalid value 'x.pdf' for --plot: expected a file name that ends in .svg"),
        ("load --key x", "--key needs --cert"),
        ("load --connections 1.5", "invalid value '1.5' for --connections: expected a whole number"),
        ("load here there", "unexpected word 'there'"),
        ("load here 45000", "unexpected word '45000': a server and its port are one word, HOST:PORT"),
        ("load --requests 5 --duration 3", "--duration is not for --requests: the load ends after that many"),
        (
            "load --find p99<1s --duration 3",
            "invalid value '3' for --duration: expected at least 10 s for --",
        ),
        ("load --json --every", "invalid value '--every' for --json: expected a file name or - for standard"),
        ("load --csv -", "invalid value '-' for --csv: expected a file name; only --json takes -"),
        ("load --json nul --csv ./nul", "invalid value 'nul' for --csv: expected another file than --json"),
        ("load --ca nofile", "invalid value 'nofile' for --ca: expected a PEM file of certificates (no such"),
        ("load --mix QUIT:1", "invalid value 'QUIT:1' for --mix: expected KIND:WEIGHT"),
        ("lab --fault fire", "invalid value 'fire' for --fault: expected one of slow-clients, garbage,"),
    ],
)
def test_an_error_is_one_line_in_one_voice(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An error names the culprit and what is expected, whether cyclopts or triojam found it."""
    assert main(words.split()) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"triojam: {line}")
    assert written.err.count("\n") == 1


def test_an_unknown_variable_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped environment variable is an error with a suggestion."""
    monkeypatch.setenv("TRIOJAM_PROT", "1")
    assert main(["check"]) == 2
    expected = "triojam: unknown environment variable TRIOJAM_PROT: did you mean TRIOJAM_PORT?\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("days", "said"),
    [(-2, " ended at .*, 2 days ago"), (3, " ends at .*, in 3 days"), (90, None)],
)
def test_check_warns_of_a_certificate(
    days: int, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A certificate that ends soon, or has ended, is a warning of one line: the server serves it."""
    file = tmp_path / "server.pem"
    issued = authority().issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=days))
    file.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    assert main(["check", "--tls-port=0", f"--tls-certificate={file}"]) == 0
    written = capsys.readouterr()
    assert written.out.startswith("host ")
    warning = f"triojam: warning: the TLS certificate for localhost{said}\n" if said else ""
    assert re.fullmatch(warning, written.err)


def test_help_says_first_that_plain_triojam_serves(capsys: pytest.CaptureFixture[str]) -> None:
    """The first lines of `--help` say what the program without a command does, and list the commands."""
    assert main(["--help"]) == 0
    head, _, _ = capsys.readouterr().out.partition("╭")
    assert "Plain `triojam` serves, like `triojam serve`; Ctrl-C stops it." in head


def test_help_groups_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """The groups of flags come in their order, after the commands; each flag says what it takes."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    titles = re.findall(r"^╭─ ([\w ]+?) ─", text, re.MULTILINE)
    assert titles[-len(GROUPS) :] == list(GROUPS)
    assert re.search(r"--idle-timeout FLOAT +Close .*\. Takes seconds, 0 or more; 0 for no limit\.", text)


def test_serve_takes_the_flags_of_plain_triojam(capsys: pytest.CaptureFixture[str]) -> None:
    """`triojam serve` is the same command by name."""
    assert main(["serve", "--port", "70000"]) == 2
    by_name = capsys.readouterr().err
    assert main(["--port", "70000"]) == 2
    assert capsys.readouterr().err == by_name


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["load", "--help"], ["lab", "--help"]])
def test_a_text_is_printed_without_the_server(words: list[str]) -> None:
    """`--version` and `--help` import neither Trio nor any library of the server."""
    script = f"import sys; from triojam.cli.main import main; main({words!r}); print(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert SERVER_LIBRARIES & set(run.stdout.splitlines()[-1].split()) == set()
    if words == ["--version"]:
        assert run.stdout.splitlines()[0] == __version__
