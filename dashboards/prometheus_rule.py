"""Writes the rules as Kubernetes takes them: python -m dashboards.prometheus_rule [--check].

The Prometheus Operator reads a PrometheusRule, whose `groups` are those of the files in prometheus/rules.
With --check it writes nothing, and the exit status is 1 if the file differs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = HERE / "prometheus" / "rules"
FILE = HERE.parent / "deploy" / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml"

HEAD = """\
# Written by `python -m dashboards.prometheus_rule`. Change the rules in dashboards/prometheus/rules instead.
"""


def content() -> str:
    """Return the content of the file."""
    groups: list[Any] = []
    for path in sorted(RULES.glob("*.yml")):
        groups += yaml.safe_load(path.read_text("utf-8"))["groups"]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "triojam", "labels": {"app.kubernetes.io/name": "triojam"}},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.safe_dump(resource, sort_keys=False, allow_unicode=True, width=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or compare it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.prometheus_rule", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file differs")
    options = parser.parse_args(arguments)
    text = content()
    if not options.check:
        FILE.write_text(text, "utf-8")
    elif not FILE.exists() or FILE.read_text("utf-8") != text:
        print(f"{FILE.name} differs: run python -m dashboards.prometheus_rule")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
