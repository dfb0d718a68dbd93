"""docs/verify.md agrees with the rules and the command."""

from tests.helpers.pages import ROOT, anchors, read, table
from triojam.cli import servers
from triojam.errors import ConfigurationError
from triojam.verify.report import page
from triojam.verify.rules import RULES


def test_the_page_has_every_rule() -> None:
    """The page ends with what `triojam verify --rules` prints."""
    assert read("docs/verify.md").endswith("\n\n" + page(RULES)), "triojam verify --rules prints the sections"


def test_each_rule_has_its_own_anchor() -> None:
    """A link can lead to each rule."""
    assert {rule.name for rule in RULES} <= anchors(ROOT / "docs/verify.md")


def test_rules_depend_on_earlier_rules() -> None:
    """Names are unique, and a rule depends on rules before it only."""
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    for place, rule in enumerate(RULES):
        assert set(rule.depends) <= set(names[:place])


def test_rules_are_sorted_by_group() -> None:
    """The command prints one heading for each group."""
    groups = [rule.group for rule in RULES]
    assert groups == sorted(groups, key=list(type(groups[0])).index)


def test_exit_statuses_are_complete() -> None:
    """The table has the statuses that the command returns."""
    expected = [0, servers.FAILED, ConfigurationError.exit_status, servers.INTERRUPTED]
    assert [int(status) for status, _ in table("docs/verify.md", "Exit status")] == expected
