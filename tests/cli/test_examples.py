"""The README's examples are the files in examples/, and they do what they say."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cli.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_readme_shows_the_examples_whole() -> None:
    for name in ("upper.py", "client.py"):
        assert (ROOT / "examples" / name).read_text().strip() in README


def test_the_client_example_runs(network: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "examples/client.py"],
        cwd=ROOT,
        env={**os.environ, **network},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *kinds, answer = done.stdout.splitlines()
    assert kinds == ["awarded", "output", "final"]
    assert answer.startswith("{'text': 'HELLO, NETWORK'} by acme-upper for ")
