"""Verdicts as text, as JSON, as JUnit's XML and as Markdown, and the rules as a page."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.table import Table
from rich.text import Text

from triojam.verify.judge import Finding, Group, Rule, Verdict
from triojam.verify.run import Report

TITLES = {
    Group.EXERCISE: "The exercise",
    Group.LATER: "Later editions",
    Group.ROBUST: "Robust",
    Group.STRICT: "triojam's own contract",
}
STYLES = {Verdict.HOLDS: "green", Verdict.FAILS: "bold red", Verdict.NOT_TRIED: "yellow"}
PAGE = "docs/verify.md"


@dataclass(frozen=True)
class Score:
    """How many rules of a group hold, of those that count: a slow rule that was not asked for does not."""

    holds: int
    of: int

    def __str__(self) -> str:
        return f"{self.holds}/{self.of}"


def scores(findings: Sequence[Finding]) -> dict[Group, Score]:
    """Return the score of each group that was tried."""
    found = {}
    for group in Group:
        counted = [each for each in findings if each.rule.group is group and not each.skipped]
        if counted:
            found[group] = Score(sum(each.verdict is Verdict.HOLDS for each in counted), len(counted))
    return found


def failing(findings: Sequence[Finding]) -> list[Finding]:
    """Return the rules that fail, the worst first: the exercise comes before everything else."""
    return [each for each in findings if each.verdict is Verdict.FAILS]


def passed(reports: Sequence[Report], groups: Collection[Group]) -> bool:
    """Whether no rule of these groups fails."""
    return not any(each.rule.group in groups for report in reports for each in failing(report.findings))


class Lines:
    """Prints the verdicts about one server, each as soon as it is known."""

    def __init__(self, console: Console, rules: Sequence[Rule]) -> None:
        self._console = console
        self._width = max(len(rule.name) for rule in rules)
        self._group: Group | None = None

    def show(self, finding: Finding) -> None:
        """Print one verdict, and the heading of its group before the first one."""
        rule = finding.rule
        if rule.group is not self._group:
            self._console.print(Text(("\n" if self._group else "") + TITLES[rule.group], "bold"))
            self._group = rule.group
        line = Text("  ")
        line.append(f"{finding.verdict:9}", STYLES[finding.verdict])
        line.append(f"  {rule.name:{self._width}}  {self._told(finding)}")
        self._console.print(line, soft_wrap=True)
        if finding.verdict is Verdict.FAILS:
            for name, text in details(finding):
                for place, each in enumerate(text.splitlines()):
                    self._console.print(Text(f"      {'' if place else name:10} {each}"), soft_wrap=True)

    @staticmethod
    def _told(finding: Finding) -> str:
        if finding.verdict is Verdict.NOT_TRIED:
            return finding.reason
        if finding.verdict is Verdict.FAILS:
            return finding.rule.title
        told = f"{finding.sent} → {finding.came}"
        return finding.rule.title if told == "nothing → nothing" or not finding.sent else told


def details(finding: Finding) -> Iterator[tuple[str, str]]:
    """Yield what to say about a rule that fails."""
    yield "reason", finding.reason
    if finding.sent:
        yield "sent", finding.sent
        yield "came back", finding.came
    yield "purpose", finding.rule.purpose
    yield "usually", finding.rule.cause
    yield "mend", finding.rule.mend
    if finding.stderr:
        yield "stderr", finding.stderr


def summary(report: Report) -> str:
    """Render the scores of one server."""
    return ", ".join(
        f"{group} {score.holds} of {score.of}" for group, score in scores(report.findings).items()
    )


def print_table(reports: Sequence[Report], console: Console) -> None:
    """Print a row for each server, and then each rule that fails anywhere, the most frequent one first."""
    groups = [group for group in Group if any(group in scores(each.findings) for each in reports)]
    _print_rows(console, ["server", *groups, "fails"], [_row(each, groups) for each in reports])
    common = _common(reports)
    if common:
        console.print()
        _print_rows(console, ["rule", "fails", "usually"], common)


def _row(report: Report, groups: Sequence[Group]) -> list[str]:
    by_group = scores(report.findings)
    names = ", ".join(each.rule.name for each in failing(report.findings))
    return [report.server.name, *(str(by_group.get(group, "")) for group in groups), names]


def _common(reports: Sequence[Report]) -> list[list[str]]:
    failed = [each.rule for report in reports for each in failing(report.findings)]
    counts = Counter(rule.name for rule in failed)
    causes = {rule.name: rule.cause for rule in failed}
    return [[name, f"{count} of {len(reports)}", causes[name]] for name, count in counts.most_common()]


def _print_rows(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, and aligned lines elsewhere."""
    if console.is_terminal:
        drawn = Table(*headings, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for row in rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip(), file=console.file)


def as_json(reports: Sequence[Report]) -> str:
    """Render the verdicts for programs."""
    data = [
        {
            "server": report.server.name,
            "address": str(report.server.target),
            "score": {
                group: {"holds": score.holds, "of": score.of}
                for group, score in scores(report.findings).items()
            },
            "rules": [
                {
                    "rule": each.rule.name,
                    "group": each.rule.group,
                    "title": each.rule.title,
                    "verdict": each.verdict,
                    "reason": each.reason,
                    "sent": each.sent,
                    "came": each.came,
                    "stderr": each.stderr,
                }
                for each in report.findings
            ],
        }
        for report in reports
    ]
    return json.dumps(data, indent=2)


def as_junit(reports: Sequence[Report]) -> str:
    """Render the verdicts as JUnit's XML: a suite for each server, a test case for each rule."""
    root = ET.Element("testsuites", name="triojam verify")
    for report in reports:
        verdicts = [each.verdict for each in report.findings]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=report.server.name,
            tests=str(len(verdicts)),
            failures=str(verdicts.count(Verdict.FAILS)),
            skipped=str(verdicts.count(Verdict.NOT_TRIED)),
        )
        for each in report.findings:
            case = ET.SubElement(
                suite,
                "testcase",
                classname=f"{report.server.name}.{each.rule.group}",
                name=f"{each.rule.name}: {each.rule.title}",
            )
            if each.verdict is Verdict.FAILS:
                failure = ET.SubElement(case, "failure", message=each.reason)
                failure.text = "\n".join(f"{name}: {text}" for name, text in details(each))
            elif each.verdict is Verdict.NOT_TRIED:
                ET.SubElement(case, "skipped", message=each.reason)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


def as_markdown(reports: Sequence[Report]) -> str:
    """Render the verdicts as a table to hand back, and what to do about each rule that fails."""
    parts = []
    for report in reports:
        parts.append(f"# {report.server.name}\n\n{summary(report)}\n")
        rows = [
            f"| {each.verdict} | {each.rule.name} | {each.rule.title} | {_text(each.reason)} |\n"
            for each in report.findings
        ]
        parts.append("| verdict | rule | what it asks for | why not |\n|---|---|---|---|\n" + "".join(rows))
        for each in failing(report.findings):
            came = f"- Sent: {_code(each.sent)}; came back: {_code(each.came)}\n" if each.sent else ""
            stderr = f"\nWritten to stderr:\n\n{_block(each.stderr)}" if each.stderr else ""
            parts.append(
                f"## {each.rule.name}\n\n- Fails: {_text(each.reason)}\n{came}"
                f"- Purpose: {each.rule.purpose}\n- Usually: {each.rule.cause}\n\n"
                f"{_block(each.rule.mend)}{stderr}"
            )
    return "\n".join(parts)


def page(rules: Sequence[Rule]) -> str:
    """Render the rules as the sections of docs/verify.md."""
    parts = []
    for group in Group:
        parts.append(f"## {TITLES[group]}\n")
        parts += [_section(rule) for rule in rules if rule.group is group]
    return "\n".join(parts)


def _section(rule: Rule) -> str:
    sentences = [f"{rule.title[0].upper()}{rule.title[1:]}."]
    if rule.depends:
        sentences.append(f"Depends on {' and '.join(f'`{each}`' for each in rule.depends)}.")
    if rule.slow:
        sentences.append("Only with `--slow`.")
    return (
        f"### {rule.name}\n\n{' '.join(sentences)}\n\n"
        f"- Purpose: {rule.purpose}\n- Usual mistake: {rule.cause}\n\n{_block(rule.mend)}"
    )


def _block(text: str) -> str:
    longest = "````" if "```" in text else "```"
    return f"{longest}text\n{text}\n{longest}\n"


def _text(text: str) -> str:
    """Render text that came from a server, without its meaning in Markdown."""
    return "".join(f"\\{each}" if each in "\\`*_[]<>#|&" else each for each in text)


def _code(text: str) -> str:
    return f"`` {text.replace('`', chr(39))} ``"
