"""`modelnet work --openai`: a server that runs joins in one line, and what is wrong is told before anything joins."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelnet.engines import open_engine
from tests.cli.conftest import MODELNET, ROOT, Run
from tests.engines.models import write_random
from tests.engines.openai_server import OpenAIServer

KEY = "sk-" + "of-the-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIServer]:
    """A server on a loop of its own."""
    folder = write_random(tmp_path_factory.mktemp("models") / "random")
    ready, end, found = threading.Event(), asyncio.Event(), list[OpenAIServer]()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        engine = open_engine(folder.name, kind="numpy")
        await engine.start()
        server = OpenAIServer(engine, "tiny", key=KEY)
        await server.start()
        found.append(server)
        ready.set()
        await end.wait()
        await server.stop()
        await engine.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    yield found[0]
    loop.call_soon_threadsafe(end.set)
    thread.join()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELNET_OPENAI_API_KEY", KEY)


class Joined:
    """A worker in a process of its own."""

    def __init__(self, env: dict[str, str], *arguments: str) -> None:
        logged = {"MODELNET_LOG_LEVEL": "info", "MODELNET_LOG_FORMAT": "json"}
        self.command = [*MODELNET, "work", *arguments]
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env={**os.environ, **env, **logged}, stderr=subprocess.PIPE, text=True
        )
        self.said = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if "workers_joined" in line:
                return
        raise AssertionError(self.said)

    def interrupt(self) -> int:
        """Ctrl-C: its exit code."""
        self.process.send_signal(signal.SIGINT)
        _, rest = self.process.communicate(timeout=30)
        self.said += rest
        return self.process.returncode


def test_a_server_joins_in_one_line_and_leaves_with_ctrl_c(
    modelnet: Run, network: dict[str, str], server: OpenAIServer
) -> None:
    served = ["--capability", "text.generate", "--capability", "text.embed"]
    worker = Joined(network, "--openai", server.url, "--model", "tiny", "--price", "3", *served)
    try:
        found = {one["worker"]: one for one in map(json.loads, modelnet("workers", "--json").stdout.splitlines())}
        assert found["tiny"]["capabilities"] == ["text.generate", "text.embed"]
        asked = {"prompt": "the quick", "max_tokens": 4, "temperature": 0}
        done = modelnet("submit", "text.generate", "-i", json.dumps(asked), "--json")
        assert done.returncode == 0
        final = json.loads(done.stdout.splitlines()[-1])
        assert (final["status"], final["worker"], final["usage"]["completion_tokens"]) == ("completed", "tiny", 4)
        assert modelnet("submit", "text.embed", "-i", '{"texts": ["a", "b"]}').returncode == 0
    finally:
        assert worker.interrupt() == 0
    assert "worker_left" in worker.said
    assert KEY not in worker.said
    assert KEY not in " ".join(worker.command)


def test_a_workers_file_names_servers_too(
    modelnet: Run, network: dict[str, str], server: OpenAIServer, tmp_path: Path
) -> None:
    (tmp_path / "answers.py").write_text("def answer(prompt, sampling):\n    yield 'yes, '\n    yield prompt.text\n")
    (tmp_path / "workers.toml").write_text(
        f'[[models]]\nengine = "openai"\nurl = "{server.url}"\nmodel = "tiny"\nname = "far"\n'
        'key_variable = "OTHER_KEY"\n'
        '[[models]]\nengine = "function"\nmodel = "answers.py"\nname = "near"\nprice = 1\n'
    )
    worker = Joined({**network, "OTHER_KEY": KEY, "MODELNET_OPENAI_API_KEY": ""}, str(tmp_path / "workers.toml"))
    try:
        for name, text in (("far", None), ("near", "yes, sir")):
            arguments = ["-i", '{"prompt": "sir", "max_tokens": 4}', "--require", f"worker={name}", "--json"]
            final = json.loads(modelnet("submit", "text.generate", *arguments).stdout.splitlines()[-1])
            assert (final["status"], final["worker"]) == ("completed", name)
            assert text in (None, final["output"]["text"])
    finally:
        assert worker.interrupt() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--openai", "http://127.0.0.1:1/v1", "--model", "tiny"], 1, "does it run, and is this its address?"),
        (["--openai", "URL", "--model", "tny"], 1, "has no model 'tny'; it has: another, tiny"),
        (["--openai", "URL"], 2, "has 2 models, name one with --model: another, tiny"),
        (["--openai", "URL", "--model", "tiny", "--capability", "text.rerank"], 1, "can't serve text.rerank"),
        (["--openai", "URL", "--model", "tiny", "--without", "wings"], 1, "can't lack wings"),
        (["--openai", "nowhere", "--model", "tiny"], 1, "is no address of a server"),
        ([], 2, "a FILE, --openai, --mcp"),
        (["nosuch.py"], 2, "no such file"),
        (["examples/upper.py", "--model", "tiny"], 2, "are of a server"),
    ],
)
def test_what_is_wrong_is_told_before_anything_joins(
    modelnet: Run, server: OpenAIServer, arguments: list[str], code: int, told: str
) -> None:
    done = modelnet("work", *(server.url if one == "URL" else one for one in arguments))
    assert done.returncode == code
    assert told in " ".join(done.stderr.split())


def test_a_wrong_key_is_told_and_not_shown(modelnet: Run, server: OpenAIServer) -> None:
    wrong = {"MODELNET_OPENAI_API_KEY": "sk-wrong"}
    done = modelnet("work", "--openai", server.url, "--model", "tiny", env=wrong)
    assert done.returncode == 1
    assert "is the API key right" in done.stderr
    assert "sk-wrong" not in done.stderr
    shown = modelnet("config", env=wrong)
    assert "MODELNET_OPENAI_API_KEY=***" in shown.stdout
    assert "sk-wrong" not in shown.stdout
