"""Packages of npm for the tests: installed once, into the user's cache."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.helpers.requirements import cannot_run, require_program
from tests.helpers.servers import PATIENCE

HERE = Path(__file__).parent
SLOW = 15 * PATIENCE


def install(name: str) -> Path:
    """Return the node_modules of a folder of `grafana`; npm installs them once for each package.json."""
    npm = require_program("npm", "npm")
    require_program("node", "nodejs")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triojam-tests"
    version = hashlib.sha256((HERE / name / "package.json").read_bytes()).hexdigest()[:12]
    packages = cache / f"{name}-{version}"
    if not packages.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Another run may install them at the same time. A whole folder gets the name.
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:
            folder = Path(unfinished) / name
            folder.mkdir()
            for file in ("package.json", ".npmrc"):
                shutil.copy(HERE / name / file, folder)
            try:
                run(npm, "install", folder=folder)
            except subprocess.SubprocessError as error:
                cannot_run(f"needs packages of npm: {error}")
            with suppress(OSError):  # the other run was first
                folder.rename(packages)
    return packages / "node_modules"


def beside(packages: Path, folder: Path, *files: Path) -> None:
    """Copy files into a folder, and put the packages beside them."""
    for file in files:
        shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(packages)


def run(*command: str | Path, folder: Path, given: str = "") -> str:
    """Run a program that must succeed, and return its output."""
    ended = subprocess.run(
        command, cwd=folder, input=given, capture_output=True, check=False, text=True, timeout=SLOW
    )
    if ended.returncode != 0:
        raise subprocess.SubprocessError(f"{command}: {ended.stdout}{ended.stderr}")
    return ended.stdout
