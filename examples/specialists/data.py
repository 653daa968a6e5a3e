"""The six tasks and their data: what to train on, what is held out, and the forms never trained on."""

import random
from collections.abc import Callable, Mapping
from types import ModuleType

from examples.specialists import dates, numbers
from examples.specialists.example import Example, Split

CAPABILITIES = tuple(f"normalize.{kind}.{language}" for kind in ("date", "number") for language in ("en", "de", "fr"))

MODELS: dict[str, tuple[str, ...]] = {
    **{"-".join(capability.split(".")[1:]): (capability,) for capability in CAPABILITIES},
    "generalist": CAPABILITIES,
}
"""The models that ship, each with its capabilities."""

PRICES = {
    "date-en": 14,
    "date-de": 15,
    "date-fr": 14,
    "number-en": 11,
    "number-de": 12,
    "number-fr": 12,
    "generalist": 4,
}
"""The asking price of one answer in micro-credits; a longer answer costs more, the smaller generalist much less."""

HELD_OUT_SEED = 20261123


def source(capability: str) -> tuple[ModuleType, str]:
    """The module that generates a capability's data, and the language."""
    _, kind, language = capability.split(".")
    return {"date": dates, "number": numbers}[kind], language


def prompt_template(model: str, capability: str) -> str:
    """The `str.format` template that turns a task's input into the model's prompt; the generalist is told the task."""
    if len(MODELS[model]) == 1:
        return "{text}="
    _, kind, language = capability.split(".")
    return f"{language} {kind}: {{text}}="


def output_parser(capability: str) -> dict[str, object]:
    """How an answer's digits become the output: a regular expression and a template over its groups."""
    if ".date." in capability:
        return {"regex": r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})", "output": {"value": "{y}-{m}-{d}"}}
    return {"regex": r"0*(?P<n>\d+)", "output": {"value": "{n}"}}


def mapping(model: str, quality: Mapping[str, float]) -> dict[str, object]:
    """The content of a model's `modelnet.json`: how each of its capabilities' contracts maps onto prompts and answers.

    `quality` is the exact match measured on held-out data, by capability.
    """
    return {
        "name": model,
        "capabilities": {
            capability: {
                "prompt_template": prompt_template(model, capability),
                "output_parser": output_parser(capability),
                "sampling": {"max_tokens": 10, "temperature": 0},
                "price": PRICES[model],
                "quality": round(quality[capability], 3),
            }
            for capability in MODELS[model]
        },
    }


def training(capability: str, count: int, seed: int) -> list[Example]:
    """`count` examples for training, duplicates possible."""
    module, language = source(capability)
    rng = random.Random(f"{seed} {capability} train")
    return [module.training(language, rng) for _ in range(count)]


def held_out(capability: str, split: Split, count: int, seed: int = HELD_OUT_SEED) -> list[Example]:
    """`count` different examples in trained forms whose items were never trained on."""
    module, language = source(capability)
    rng = random.Random(f"{seed} {capability} {split} held out")
    return _distinct(lambda: module.held_out(language, split, rng), count)


def unseen_forms(capability: str, split: Split, count: int, seed: int = HELD_OUT_SEED) -> list[Example]:
    """`count` different examples of held-out items in forms never trained on."""
    module, language = source(capability)
    rng = random.Random(f"{seed} {capability} {split} unseen forms")
    return _distinct(lambda: module.unseen_form(language, split, rng), count)


def _distinct(make: Callable[[], Example], count: int) -> list[Example]:
    examples: dict[str, Example] = {}
    while len(examples) < count:
        made = make()
        examples.setdefault(made.text, made)
    return list(examples.values())
