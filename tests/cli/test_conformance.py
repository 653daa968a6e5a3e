"""`modelnet conformance` on a worker that runs already, and used wrongly."""

import json
import os
import signal
import subprocess

from tests.cli.conftest import MODELNET, ROOT, Run

INPUT = '{"text": "hello"}'


def test_a_worker_that_runs_is_checked_as_far_as_that_goes(modelnet: Run, network: dict[str, str]) -> None:
    work = [*MODELNET, "work", "examples/upper.py", "--name", "kit-upper"]
    worker = subprocess.Popen(work, cwd=ROOT, env={**os.environ, **network}, stderr=subprocess.PIPE, text=True)
    assert worker.stderr is not None
    try:
        next(line for line in worker.stderr if "workers_joined" in line)
        done = modelnet("conformance", "worker", "--worker", "kit-upper", "-c", "text.upper", "-i", INPUT, "--json")
        *findings, summary = map(json.loads, done.stdout.splitlines())
        results = {one["requirement"]: one["result"] for one in findings}
        assert done.returncode == 0, [one for one in findings if one["result"] == "failed"]
        assert summary["failed"] == 0
        assert results["W10"] == results["W24"] == results["W37"] == "passed"
        assert {name for name, result in results.items() if result == "not_checked"} >= {"W3", "W31", "W41"}
        assert all(one["why"] for one in findings if one["result"] == "not_checked")
        assert worker.wait(20) == 0  # the last check asked it to leave
    finally:
        if worker.poll() is None:
            worker.send_signal(signal.SIGKILL)
            worker.wait()


def test_what_is_to_be_checked_must_be_named_once(modelnet: Run) -> None:
    for more in ((), ("--subject", "x", "--worker", "y")):
        done = modelnet("conformance", "worker", "-c", "text.upper", "-i", INPUT, *more)
        assert (done.returncode, "--subject" in done.stderr) == (2, True)


def test_nobody_by_this_name(modelnet: Run) -> None:
    done = modelnet("conformance", "worker", "--worker", "nobody", "-c", "text.upper", "-i", INPUT, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "unknown_worker"


def test_a_worker_of_another_capability(modelnet: Run) -> None:
    done = modelnet("conformance", "worker", "--worker", "awkward", "-c", "text.upper", "-i", INPUT, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "no_capability"
