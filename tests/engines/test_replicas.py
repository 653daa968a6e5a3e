"""A model with several replicas: a process for each, that sees its devices and no others, and is started again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import structlog

from modelnet.bus.embedded import EmbeddedNats
from modelnet.errors import UsageError
from modelnet.settings import settings
from tests.engines.models import write_chain
from tests.network.stage import PATIENCE_S, Network, fast
from workers.vllm import replicas


def processes() -> dict[str, int]:
    """Children of this process that serve a part of a workers file: their devices, by part."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            pairs = (entry / "environ").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            continue
        facts = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if parent == os.getpid() and replicas.PART in facts:
            found[f"{facts[replicas.PART]} on {facts['CUDA_VISIBLE_DEVICES']}"] = int(entry.name)
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_each_replica_is_a_worker_of_its_own(
    nats_server: EmbeddedNats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_chain(tmp_path / "chain")
    file = tmp_path / "workers.toml"
    file.write_text('[[models]]\nmodel = "chain"\nengine = "numpy"\nreplicas = [[0], [2, 1]]\n')
    for name, value in {"URL": nats_server.url, "DATA": str(tmp_path), "BEAT_S": "0.2", "LOG_LEVEL": "error"}.items():
        monkeypatch.setenv(f"MODELNET_{name}", value)
    settings.cache_clear()
    monkeypatch.setattr(replicas, "require_possible", lambda path, models: None)  # there are no such GPUs here
    try:
        async with Network(fast(nats_server.url)) as network:
            await network.negotiator()
            app = replicas.make_app(file)
            await app.start()
            assert set(processes()) == {"0/0 on 0", "0/1 on 2,1"}
            assert {one.card.worker for one in await network.client.workers()} == {"chain-1", "chain-2"}
            for name in ("chain-1", "chain-2"):
                output = await network.client.run("text.generate", {"prompt": "a"}, require={"worker": name})
                assert output["text"] == "é日€z"
            pid = processes()["0/0 on 0"]
            os.kill(pid, 9)
            async with asyncio.timeout(PATIENCE_S):
                await network.client.run("text.generate", {"prompt": "a"}, require={"worker": "chain-1"}, deadline_s=20)
            assert processes()["0/0 on 0"] != pid
            await app.stop()
            assert processes() == {}
            assert await network.client.workers() == []
    finally:
        settings.cache_clear()
        structlog.reset_defaults()  # the app has set up the log of this process


def test_a_part_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "workers.toml"
    file.write_text('[[models]]\nmodel = "a/b"\n')
    for part in ("1/0", "x", "-"):
        monkeypatch.setenv(replicas.PART, part)
        with pytest.raises(UsageError, match="no part of the workers file"):
            replicas.make_app(file)
