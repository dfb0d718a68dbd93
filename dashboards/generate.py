"""Writes the dashboards' JSON files: python -m dashboards.generate [--check].

With --check it writes nothing, and the exit status is 1 if a file differs.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.overview import fleet, overview
from dashboards.panels import assemble, page
from dashboards.rows import RUNBOOKS_UID

HERE = Path(__file__).parent
FOLDER = HERE / "grafana" / "dashboards"
RUNBOOKS = HERE / "RUNBOOKS.md"

# The text of a mark. The library does not have these fields of Prometheus annotations.
MARKS = {
    "Alerts": {"titleFormat": "{{alertname}}", "textFormat": "{{severity}} {{instance}}"},
    "Restarts": {"titleFormat": "started", "textFormat": "{{instance}}"},
}


def runbooks(markdown: str) -> builders.Dashboard:
    """Build a dashboard from the runbooks, so that the link to them works in every Grafana."""
    _, *sections = re.split(r"^## +", markdown, flags=re.MULTILINE)
    panels = []
    for section in sections:
        heading, _, body = section.partition("\n")
        # A line of text is a little lower than a unit of the grid. Longer texts can be scrolled.
        height = min(4 + len(body.splitlines()), 24)
        panels.append(
            page(heading.strip(), f"The runbook for {heading.strip()}.", body.strip(), height=height)
        )
    board = (
        builders.Dashboard("triojam runbooks")
        .uid(RUNBOOKS_UID)
        .description("What each alert means, how to check it, and what to do.")
        .tags(["triojam"])
        .readonly()
    )
    return assemble(board, {"Runbooks": panels})


def as_json(board: builders.Dashboard) -> str:
    """Return the content of a dashboard's file."""
    content: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    for annotation in content.get("annotations", {}).get("list", []):
        annotation.update(MARKS[annotation["name"]])
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """Return every file and its text."""
    texts = as_json(runbooks(RUNBOOKS.read_text("utf-8")))
    panels = {panel["title"]: panel["id"] for panel in json.loads(texts)["panels"] if panel["type"] != "row"}
    return {
        FOLDER / "triojam.json": as_json(overview(panels)),
        FOLDER / "triojam-fleet.json": as_json(fleet()),
        FOLDER / "triojam-runbooks.json": texts,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = argparse.ArgumentParser(prog="python -m dashboards.generate", description=__doc__)
    arguments.add_argument("--check", action="store_true", help="only print which files differ")
    check: bool = arguments.parse_args(argv).check
    made = files()
    different = [path for path, content in made.items() if _read(path) != content]
    left_over = [path for path in FOLDER.glob("*.json") if path not in made]
    for path in [*different, *left_over]:
        print(path.relative_to(HERE.parent))
    if check:
        return 1 if different or left_over else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in different:
        path.write_text(made[path], "utf-8")
    for path in left_over:
        path.unlink()
    return 0


def _read(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
