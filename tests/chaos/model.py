"""A vLLM worker in the campaign: one of the tiny specialists, and the tasks whose answers it is known to give."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import modelnet
from examples.specialists.data import held_out
from examples.specialists.example import Split
from tests.chaos.fleet import LAUNCH, Fleet

__all__ = ["prepare_model"]

CAPABILITY = "normalize.date.en"
MODEL = Path(__file__).resolve().parents[2] / "examples" / "specialists" / "models" / "date-en"
TASKS = 60


async def prepare_model(fleet: Fleet) -> Path:
    """Let the model join; a file of tasks with the answers that it gave in peace, as `tests.chaos.load` reads it."""
    workers = fleet.folder / "workers.toml"
    workers.write_text(f'[[models]]\nmodel = "{MODEL}"\nslots = 16\n')
    env = {"MODELNET_WORKERS_FILE": str(workers), "MODELNET_DATA": str(fleet.folder)}
    party = await fleet.add("model", "model", [*LAUNCH, "workers.vllm:app"], b"workers_joined", env)
    tasks = [{"text": example.text} for example in held_out(CAPABILITY, Split.TEST, TASKS)]
    async with modelnet.connect(f"nats://127.0.0.1:{party.proxy.port}") as net:
        answers = await asyncio.gather(*(net.run(CAPABILITY, task) for task in tasks))
    file = fleet.folder / "model_tasks.json"
    file.write_text(json.dumps([[CAPABILITY, task, answer] for task, answer in zip(tasks, answers, strict=True)]))
    return file
