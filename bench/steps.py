"""What foretells vLLM's steps best? They are recorded on a model made on the spot, then foretold one by one.

    python -m bench.steps [--recorded FILE] [--write]

Each method sees the steps in order, and foretells each before it learns from it. Errors are |foretold / actual - 1|.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.conversations import words
from modelnet.engines import Prompt, Sampling, open_engine
from modelnet.engines.steps import StepModel
from tests.engines.models import Shape, write_random

__all__ = ["main"]

RESULTS = Path(__file__).with_name("results")
MODEL = Shape(hidden=256, heads=4, kv_heads=2, head_dim=64, layers=6, inner=768, context=8192)
RATES, REQUESTS = (2.0, 8.0, 20.0), 60
WARM_UP = 50

Step = tuple[int, int, int, float]
"""Requests that decoded, prompt tokens computed, tokens held in the cache, seconds."""


class Method(Protocol):
    """Foretells and learns."""

    def foretell(self, step: Step) -> float | None:
        """Seconds, of a step whose own are not looked at."""

    def learn(self, step: Step) -> None:
        """What it took."""


class Cells:
    """The network's own: cells, and a fit over them."""

    def __init__(self) -> None:
        self._model = StepModel()

    def foretell(self, step: Step) -> float | None:
        """By the fit."""
        pace = self._model.pace()
        return pace.step_s(*step[:3]) if pace is not None else None

    def learn(self, step: Step) -> None:
        """Into its cell."""
        self._model.learn(*step)


class Recursive:
    """Recursive least squares with forgetting, of the relative error; a surprise counts for the foretold time at most.
    Tokens held are left out: with them it did not settle."""

    def __init__(self, memory: float = 500.0) -> None:
        self._kept = 1 - 1 / memory
        self._scale: NDArray[np.float64] = np.array([1.0, 16.0, 256.0])
        self._cost = np.array([5e-3, 1e-4, 5e-5]) * self._scale
        self._spread = np.eye(3) * 1e-2

    def _x(self, step: Step) -> NDArray[np.float64]:
        return np.array([1.0, step[0], step[1]], np.float64) / self._scale

    def foretell(self, step: Step) -> float:
        """By the costs as they are."""
        return max(float(self._x(step) @ self._cost), 1e-5)

    def learn(self, step: Step) -> None:
        """One update."""
        x, foretold = self._x(step), self.foretell(step)
        error = float(np.clip(step[3] - x @ self._cost, -foretold, foretold))
        spread = self._spread @ x
        gain = spread / (self._kept * foretold**2 + x @ spread)
        self._cost = np.maximum(self._cost + gain * error, 0)
        self._spread = (self._spread - np.outer(gain, spread)) / self._kept
        self._spread *= min(1.0, 1e-2 / float(np.max(np.diag(self._spread))))


class Medians:
    """The median of the last 64 steps of the same cell."""

    def __init__(self) -> None:
        self._cells: defaultdict[tuple[int, int], list[float]] = defaultdict(list)

    def foretell(self, step: Step) -> float | None:
        """None for a cell that is new."""
        seen = self._cells.get((step[0].bit_length(), step[1].bit_length()))
        return statistics.median(seen[-64:]) if seen else None

    def learn(self, step: Step) -> None:
        """Into its cell."""
        self._cells[step[0].bit_length(), step[1].bit_length()].append(step[3])


class Moving:
    """A moving average of all steps."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def foretell(self, step: Step) -> float | None:
        """The average."""
        return self._mean

    def learn(self, step: Step) -> None:
        """A tenth of the new."""
        self._mean = step[3] if self._mean is None else self._mean + 0.1 * (step[3] - self._mean)


METHODS: dict[str, Callable[[], Method]] = {
    "fit over cells": Cells,
    "recursive squares": Recursive,
    "medians of cells": Medians,
    "moving average": Moving,
}


async def record() -> list[Step]:
    """Requests at three rates, and the steps that they took."""
    steps, chance = list[Step](), random.Random(1)
    with tempfile.TemporaryDirectory(prefix="modelnet-steps-") as kept:
        folder = write_random(Path(kept) / "model", shape=MODEL)
        engine = open_engine(folder.name, kind="vllm", max_model_len=MODEL.context, kv_cache_memory_bytes=128 << 20)
        await engine.start()
        model = engine.state().step_times
        assert model is not None
        learn = model.learn

        def listen(decoding: int, prefill: int, held: int, seconds: float) -> None:
            steps.append((decoding, prefill, held, seconds))
            learn(decoding, prefill, held, seconds)

        model.learn = listen  # type: ignore[method-assign]

        async def one(name: str, due: float, text: str, tokens: int) -> None:
            await asyncio.sleep(due)
            async for _ in engine.generate(name, Prompt(text=text), Sampling(max_tokens=tokens, temperature=0)):
                pass

        for rate in RATES:
            due, jobs = 0.0, []
            for number in range(REQUESTS):
                due += chance.expovariate(rate)
                text = words(chance, min(int(chance.expovariate(1 / 4000)) + 40, 24_000))
                jobs.append(one(f"{rate} {number}", due, text, chance.choice((16, 64, 200))))
            await asyncio.gather(*jobs)
        await engine.close()
    return steps


def report(steps: list[Step]) -> str:
    """A row a method."""
    lines = [
        f"bench/steps.py: {len(steps)} steps of vLLM on a CPU, {sum(s[1] > 0 for s in steps)} of which compute prompts",
        "",
        f"{'relative error':<20}{'median':>9}{'p90':>9}{'of decoding steps':>19}{'of steps with prompts':>23}",
    ]
    for name, made in METHODS.items():
        method, errors = made(), list[tuple[float, bool]]()
        for number, step in enumerate(steps):
            foretold = method.foretell(step)
            if number >= WARM_UP and foretold is not None:
                errors.append((abs(foretold / step[3] - 1), step[1] > 0))
            method.learn(step)
        every = sorted(error for error, _ in errors)
        kinds = [statistics.median([error for error, prompts in errors if prompts == kind]) for kind in (False, True)]
        lines.append(
            f"{name:<20}{statistics.median(every):>9.1%}{every[int(len(every) * 0.9)]:>9.1%}{kinds[0]:>19.1%}"
            f"{kinds[1]:>23.1%}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run, print, and with --write keep the output and the steps under bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, help="steps of an earlier run: take these")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(arguments)
    steps = json.loads(args.recorded.read_text()) if args.recorded else asyncio.run(record())
    text = report([(int(d), int(p), int(h), float(s)) for d, p, h, s in steps])
    sys.stdout.write(text + "\n")
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        RESULTS.joinpath("steps.txt").write_text(text + "\n")
        RESULTS.joinpath("steps.json").write_text(json.dumps([[d, p, h, round(s, 6)] for d, p, h, s in steps]) + "\n")


if __name__ == "__main__":
    main()
