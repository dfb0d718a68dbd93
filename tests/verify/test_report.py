"""Verdicts as text, JSON, JUnit's XML and Markdown, and the words of the command line."""

import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from triojam.cli import main
from triojam.client.session import Target
from triojam.errors import ConfigurationError
from triojam.verify import report as reports_as
from triojam.verify.judge import Finding, Group, Verdict
from triojam.verify.rules import RULES
from triojam.verify.run import Report, Server, free_port, servers_of

BY_NAME = {rule.name: rule for rule in RULES}
HOLDS = Finding(rule=BY_NAME["answer"], verdict=Verdict.HOLDS, sent=r"'TIME\r\n'", came=r"'JAM 12:34:56\r\n'")
FAILS = Finding(
    rule=BY_NAME["two-at-once"],
    verdict=Verdict.FAILS,
    reason="only [one] `answer` | came",
    sent=r"'TIME\r\nTIME\r\n'",
    came="'`|<b>', closed",
    stderr="Traceback\n```\n<failed>",
)
UNTRIED = Finding(rule=BY_NAME["resets"], verdict=Verdict.NOT_TRIED, reason="depends on concurrent")
SKIPPED = Finding(
    rule=BY_NAME["strict-idle-deadline"], verdict=Verdict.NOT_TRIED, reason="takes long", skipped=True
)
ONE = Report(Server("submissions/ada", Target("127.0.0.1")), [HOLDS, FAILS, UNTRIED, SKIPPED])
GOOD = Report(Server("grace", Target("127.0.0.1")), [HOLDS])


@pytest.fixture
def unused_port() -> int:
    """Return a port on which no server listens."""
    return free_port()


def test_a_skipped_rule_does_not_count() -> None:
    """A score has the rules of a group that count: a slow rule does not without --slow."""
    scores = {group: str(score) for group, score in reports_as.scores(ONE.findings).items()}
    assert scores == {Group.EXERCISE: "1/1", Group.ROBUST: "0/2"}
    assert reports_as.summary(ONE) == "exercise 1 of 1, robust 0 of 2"


def test_only_required_groups_decide() -> None:
    """A rule that fails outside of the required groups does not matter."""
    assert reports_as.passed([ONE, GOOD], [Group.EXERCISE, Group.LATER])
    assert not reports_as.passed([GOOD, ONE], [Group.EXERCISE, Group.LATER, Group.ROBUST])


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_have_the_exchange_and_the_advice(*, terminal: bool) -> None:
    """A rule that holds has one line; a rule that fails also has its reason, its exchange and its mend."""
    console = Console(file=io.StringIO(), force_terminal=terminal, no_color=True, width=60, highlight=False)
    lines = reports_as.Lines(console, RULES)
    for finding in ONE.findings:
        lines.show(finding)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    if not terminal:
        text = [" ".join(line.split()) for line in shown.splitlines()]
        assert text[:2] == ["The exercise", r"holds answer 'TIME\r\n' → 'JAM 12:34:56\r\n'"]
        assert "fails two-at-once two requests in one segment get two answers" in text
        assert "reason only [one] `answer` | came" in text
        assert "came back '`|<b>', closed" in text
        assert "<failed>" in text
        assert "not tried resets depends on concurrent" in text
    assert ("\x1b[" in shown) == terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_a_table_has_a_row_for_each_server(*, terminal: bool) -> None:
    """Several servers have a row each, and then the rules that fail, the most frequent one first."""
    twice = Report(Server("linus", Target("127.0.0.1")), [replace(FAILS, rule=BY_NAME["cr-lf"]), FAILS])
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    reports_as.print_table([ONE, GOOD, twice], console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "cr-lf, two-at-once" in shown
    assert shown.index("2 of 3") < shown.index("1 of 3")
    if not terminal:
        assert shown.splitlines()[1].split() == ["submissions/ada", "1/1", "0/2", "two-at-once"]


def test_a_table_of_good_servers_has_no_second_table() -> None:
    """If no rule fails, there is nothing to list."""
    console = Console(file=io.StringIO())
    reports_as.print_table([GOOD, GOOD], console)
    assert isinstance(console.file, io.StringIO)
    assert len(console.file.getvalue().splitlines()) == 3


def test_json_has_every_verdict() -> None:
    """The JSON has the score of each group, and each rule with its exchange."""
    (one,) = json.loads(reports_as.as_json([ONE]))
    assert one["score"]["robust"] == {"holds": 0, "of": 2}
    assert [each["verdict"] for each in one["rules"]] == ["holds", "fails", "not tried", "not tried"]
    assert one["rules"][1]["reason"] == FAILS.reason


def test_junit_has_a_case_for_each_rule() -> None:
    """A rule that fails is a failure with its advice, and a rule that was not tried is skipped."""
    (suite,) = ET.fromstring(reports_as.as_junit([ONE]).encode())
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "2")
    (failure,) = suite[1]
    assert failure.get("message") == FAILS.reason
    assert f"usually: {FAILS.rule.cause}" in (failure.text or "")
    assert "<failed>" in (failure.text or "")
    assert suite[2][0].tag == "skipped"


def test_markdown_shows_what_a_server_sent_as_text() -> None:
    """Bytes of a server are not read as Markdown, and its stderr cannot end its block."""
    text = reports_as.as_markdown([ONE])
    assert r"| only \[one\] \`answer\` \| came |" in text
    assert "came back: `` ''|<b>', closed ``" in text
    assert "````text\nTraceback\n```\n<failed>\n````\n" in text


@pytest.mark.parametrize(
    ("command", "words", "port", "error"),
    [
        (None, ["host:x"], None, "invalid value 'host:x' for SERVERS: expected HOST or HOST:PORT"),
        (None, [], 5, "--port is for --command"),
        ("nosuch-program", [], None, "invalid value 'nosuch-program' for --command: expected a program"),
        ("", [], None, "invalid value '' for --command"),
        ("python3 'x", [], None, "for --command: expected the words of a command (no closing quotation)"),
        ("sh {}", [], None, "--command has {}: expected the submissions"),
        ("sh", ["localhost"], None, "--command without {} starts one server"),
    ],
)
def test_wrong_words_are_named(command: str | None, words: list[str], port: int | None, error: str) -> None:
    """The error names the word and what it should be."""
    with pytest.raises(ConfigurationError) as caught:
        servers_of(command, words, port)
    assert error in str(caught.value)


def test_a_submission_takes_the_place_of_the_braces() -> None:
    """A submission stays one word, whatever is in its name; each has its own free port."""
    first, second = servers_of("sh -c 'cd \"$0\" && exec ./run {port}' {}", ["a b", "$(x)"], None)
    assert first.command == ("sh", "-c", f'cd "$0" && exec ./run {first.target.port}', "a b")
    assert second.command[-1] == second.name == "$(x)"
    assert first.target.port != second.target.port
    (fixed,) = servers_of("sh {} {port}", ["a"], 7)
    assert (fixed.command, fixed.target) == (("sh", "a", "7"), Target("127.0.0.1", 7))


def test_rules_are_printed_as_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """`--rules` prints the rules, and judges nothing."""
    assert main.main(["verify", "--rules"]) == 0
    assert capsys.readouterr().out == reports_as.page(RULES)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--json", "--md"], "--json and --md: expected one of them"),
        (["--junit", "/nonexistent/x"], "invalid value '/nonexistent/x' for --junit"),
        (["--require", "all"], "invalid value 'all' for --require: expected one of exercise, later"),
        (["--timezone", "Moon"], "invalid value 'Moon' for --timezone"),
        (["--command"], "no value for --command"),
        (["--port", "0", "--command", "sh"], "invalid value '0' for --port: expected a port from 1 to 65535"),
        (["--port", "65536", "--command", "sh"], "invalid value '65536' for --port"),
        (["--patience", "0"], "invalid value '0' for --patience: expected a number above 0"),
        (["--stict"], "unknown option --stict: did you mean --strict?"),
    ],
)
def test_an_error_is_one_line(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong word is one line on stderr, and status 2."""
    assert main.main(["verify", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert error in printed.err


def test_a_server_that_is_not_there_fails_the_first_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unused_port: int
) -> None:
    """A refused connection is not a wrong answer: the open port fails, and nothing else is tried."""
    server, junit = f"127.0.0.1:{unused_port}", tmp_path / "x.xml"
    assert main.main(["verify", server, "--junit", str(junit)]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "reason no connection: connection refused" in lines
    assert lines[-1] == "exercise 0 of 8, later 0 of 2, robust 0 of 12"
    assert 'failures="1"' in junit.read_text("utf-8")
    assert main.main(["verify", server, "--md"]) == 1
    assert capsys.readouterr().out.startswith(f"# {server}\n\nexercise 0 of 8")
    assert main.main(["verify", server, server]) == 1
    assert capsys.readouterr().out.count("port") >= 2
