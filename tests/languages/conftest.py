"""The JavaScript examples with their packages, where there is a Node to run them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def node_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples in JavaScript and the packages that they name."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("examples")
    for file in (*EXAMPLES.glob("*.mjs"), EXAMPLES / "package.json"):
        shutil.copy(file, folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install the examples' packages: {done.stderr.strip().splitlines()[-1:]}")
    return folder
