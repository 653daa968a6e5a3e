"""Measures the shipped models through vLLM, on items and on forms that they were never trained on.

    python -m examples.specialists.evaluate                  # all of them
    python -m examples.specialists.evaluate date-de --mistakes 5
    python -m examples.specialists.evaluate --write          # into the model cards and modelnet.json

Prompts and answers go through each model's `modelnet.json`, as on the network; an answer counts when the output equals
the expected one exactly. Reported numbers come from the test split; `--split dev` is for choosing between recipes.
"""

import argparse
import json
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.specialists import card, data
from examples.specialists.example import Example, Split

MODELS = Path(__file__).parent / "models"

ENGINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Read by vLLM when it is imported, so set before: one unbound thread, the engine in this process, no telemetry."""


@dataclass(slots=True)
class Measured:
    """How a model did at one capability on one set of examples."""

    right: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    mistakes: list[tuple[Example, str]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Exact match over all groups."""
        return self.right.total() / self.total.total()

    @property
    def groups(self) -> dict[str, float]:
        """Exact match by group."""
        return {name: self.right[name] / count for name, count in sorted(self.total.items())}


def parse(parser: dict[str, Any], generated: str) -> str | None:
    """The output's value for a generated text, or None where the text is no answer."""
    match = re.fullmatch(parser["regex"], generated.strip())
    return None if match is None else str(parser["output"]["value"].format(**match.groupdict()))


def load(folder: Path) -> Any:
    """A vLLM engine for a model, sized for these tiny ones."""
    for name, value in ENGINE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM  # only now: it reads the environment when imported

    return LLM(
        model=str(folder),
        enforce_eager=True,
        distributed_executor_backend="uni",
        kv_cache_memory_bytes=64 << 20,
        max_num_seqs=64,
        disable_log_stats=True,
    )


def measure(engine: Any, mapping: dict[str, Any], examples: Sequence[Example]) -> Measured:
    """Sends every example through the engine and compares."""
    from vllm import SamplingParams

    prompts = [mapping["prompt_template"].format(text=example.text) for example in examples]
    outputs = engine.generate(prompts, SamplingParams(**mapping["sampling"]), use_tqdm=False)
    measured = Measured()
    for example, output in zip(examples, outputs, strict=True):
        generated = output.outputs[0].text
        measured.total[example.form] += 1
        if parse(mapping["output_parser"], generated) == example.value:
            measured.right[example.form] += 1
        else:
            measured.mistakes.append((example, generated))
    return measured


def evaluate(model: str, split: Split, count: int, mistakes: int, write: bool) -> None:
    """Measures one model, prints a line for each capability and group, and stores the numbers where asked to."""
    folder = MODELS / model
    engine = load(folder)
    mappings = json.loads((folder / "modelnet.json").read_text())["capabilities"]
    results: dict[str, tuple[Measured, Measured]] = {}
    for capability, mapping in mappings.items():
        started = time.monotonic()
        held_out = measure(engine, mapping, data.held_out(capability, split, count))
        unseen = measure(engine, mapping, data.unseen_forms(capability, split, count // 2))
        results[capability] = (held_out, unseen)
        seconds = time.monotonic() - started
        print(
            f"{model:<11} {capability:<21} {held_out.accuracy:8.1%} {unseen.accuracy:8.1%}"
            f" {(count + count // 2) / seconds:8.0f}  {_groups(held_out)}; {_groups(unseen)}",
            flush=True,
        )
        for example, generated in (*held_out.mistakes[:mistakes], *unseen.mistakes[:mistakes]):
            print(f"    {example.form}: {example.text!r} is {example.answer}, not {generated!r}")
    if write:
        quality = {capability: held_out.accuracy for capability, (held_out, _) in results.items()}
        (folder / "modelnet.json").write_text(json.dumps(data.mapping(model, quality), indent=2) + "\n")
        scores = [
            card.Score(capability, count, held_out.accuracy, held_out.groups, unseen.accuracy, unseen.groups)
            for capability, (held_out, unseen) in results.items()
        ]
        recipe = json.loads((folder / "training.json").read_text())
        (folder / "README.md").write_text(card.render(model, recipe, scores))


def _groups(measured: Measured) -> str:
    return ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in measured.groups.items())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the shipped models through vLLM.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(data.MODELS)}; default: all")
    parser.add_argument("--split", type=Split, choices=[Split.DEV, Split.TEST], default=Split.TEST)
    parser.add_argument("--count", type=int, default=1000, help="held-out examples; half as many in unseen forms")
    parser.add_argument("--mistakes", type=int, default=0, help="wrong answers to show of each set")
    parser.add_argument("--write", action="store_true", help="store the numbers in the model card and modelnet.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(data.MODELS):
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(data.MODELS)}")
    if arguments.write and arguments.split is not Split.TEST:
        parser.error("only numbers of the test split are stored")
    print(f"{'model':<11} {'capability':<21} {'held out':>8} {'unseen':>8} {'per s':>8}  by group")
    for name in arguments.names or data.MODELS:
        evaluate(name, arguments.split, arguments.count, arguments.mistakes, arguments.write)


if __name__ == "__main__":
    main()
