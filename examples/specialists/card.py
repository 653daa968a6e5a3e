"""The model card of a specialist, written from the record of its training and its measured accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from examples.specialists import data

LANGUAGE_NAMES = {"en": "English", "de": "German", "fr": "French"}


@dataclass(frozen=True, slots=True)
class Score:
    """What was measured for one capability."""

    capability: str
    count: int
    """Held-out examples measured; half as many in forms never trained on."""
    held_out: float
    held_out_groups: Mapping[str, float]
    unseen: float
    unseen_groups: Mapping[str, float]


def purpose(capability: str) -> str:
    """What a capability does, in words."""
    _, kind, language = capability.split(".")
    if kind == "date":
        return f"{LANGUAGE_NAMES[language]} written dates to ISO 8601"
    return f"{LANGUAGE_NAMES[language]} number words, 0 to 999,999, to digits"


def render(model: str, recipe: Mapping[str, Any], scores: Sequence[Score]) -> str:
    """The card, with the front matter that Hugging Face reads."""
    languages = sorted({score.capability.split(".")[2] for score in scores})
    sections = [
        _front_matter(languages),
        f"# {model}\n\n{_what(model, recipe)}",
        f"## Task\n\n{_tasks(model)}",
        f"## Accuracy\n\n{_accuracy(model, scores)}",
        f"## Data\n\n{_data(scores)}",
        f"## Recipe\n\n{_recipe(model, recipe)}",
        f"## Architecture\n\n{_architecture(recipe)}",
        "## Licence\n\nApache-2.0, weights and data alike.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(languages: Sequence[str]) -> str:
    codes = "\n".join(f"- {language}" for language in languages)
    return (
        "---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"language:\n{codes}\ntags:\n- modelnet\n---"
    )


def _what(model: str, recipe: Mapping[str, Any]) -> str:
    size = f"{recipe['parameters']:,} parameters"
    if len(data.MODELS[model]) > 1:
        return (
            f"One Llama of {size} for all six tasks of the specialists, told by the prompt which one it is. It is "
            "smaller and cheaper than they are, trained for less time on each task, and less accurate."
        )
    return (
        f"A Llama of {size} that does one thing: {purpose(data.MODELS[model][0])}. It learned that from examples; "
        "there is no rule and no table behind it, and what it does not know it gets wrong."
    )


def _tasks(model: str) -> str:
    lines = ["The model completes the prompt with the digits of the answer and ends the sequence by itself.", ""]
    lines += ["| capability | task | prompt | the model's answer | output |", "|---|---|---|---|---|"]
    for capability in data.MODELS[model]:
        sample = data.training(capability, 1, seed=1)[0]
        prompt = data.prompt_template(model, capability).format(text=sample.text)
        output = f'{{"value": "{sample.value}"}}'
        lines.append(f"| `{capability}` | {purpose(capability)} | `{prompt}` | `{sample.answer}` | `{output}` |")
    lines += ["", "`modelnet.json` holds this mapping in a form that a worker reads."]
    return "\n".join(lines)


def _accuracy(model: str, scores: Sequence[Score]) -> str:
    count = scores[0].count
    lines = [
        f"Exact match, greedy decoding through vLLM in bfloat16: {count:,} held-out examples a capability (items never "
        f"trained on, in forms trained on) and {count // 2:,} in forms never trained on (and with held-out items).",
        "",
        "| capability | held out | forms never trained on |",
        "|---|---|---|",
    ]
    lines += [f"| `{score.capability}` | {score.held_out:.1%} | {score.unseen:.1%} |" for score in scores]
    lines += ["", "By group:", ""]
    for score in scores:
        groups = [f"{name} {accuracy:.1%}" for name, accuracy in score.held_out_groups.items()]
        groups += [f"*{name}* {accuracy:.1%}" for name, accuracy in score.unseen_groups.items()]
        lines.append(f"- `{score.capability}`: {', '.join(groups)}")
    lines += ["", "Never-trained forms are in italics. Measured by:", ""]
    lines += ["```sh", f"python -m examples.specialists.evaluate {model}", "```"]
    return "\n".join(lines)


def _data(scores: Sequence[Score]) -> str:
    kinds = {score.capability.split(".")[1] for score in scores}
    parts = []
    if "date" in kinds:
        parts.append(
            "Dates: generated from Babel's CLDR data (names of months and weekdays, standard patterns) and num2words "
            "(ordinals, years in words); years 1200 to 2899, half of them 1900 to 2099. 6 % of all years and 5 % of "
            "all day-month pairs are held out for testing and as many for choosing the recipe: no training example has "
            "one of them. `examples/specialists/dates.py` lists the forms."
        )
    if "number" in kinds:
        parts.append(
            "Numbers: written by num2words and respelled in common variants; 0 to 999,999, a third uniform, a third "
            "uniform in the count of digits, a third with many zeros. 5 % of the numbers from 100 on are held out for "
            "testing and as many for choosing the recipe. `examples/specialists/numbers.py` lists the forms."
        )
    return "\n\n".join(parts)


def _recipe(model: str, recipe: Mapping[str, Any]) -> str:
    development = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in recipe["development"].items())
    options = f"--minutes {recipe['minutes']:g} --seed {recipe['seed']}"
    return (
        f"fp32 training on one CPU thread for {recipe['minutes']:g} minutes ({recipe['steps']:,} steps of up to 64 "
        f"examples), loss on the answer's tokens only, AdamW with a learning rate of {recipe['learning_rate']:g} (100 "
        f"warm-up steps, flat for {recipe['flat']:.0%} of the time, then a cosine to 2 %), weights rounded to bfloat16 "
        f"at the end. Exact match on the development set: {development}.\n\n"
        f"```sh\npython -m examples.specialists.train {model} {options}\n```\n\n"
        "The time bounds the run, so a faster or an idler machine takes more steps."
    )


def _architecture(recipe: Mapping[str, Any]) -> str:
    hidden = recipe["hidden"]
    return (
        f"`LlamaForCausalLM`: {recipe['layers']} layers, hidden size {hidden}, {hidden // 32} heads of size 32, "
        f"feed-forward size {3 * hidden}, RMSNorm, SwiGLU, RoPE (base 10,000), no biases, tied embeddings, "
        f"{recipe['vocabulary']} tokens, 128 positions. Two things to know for an engine of one's own: the "
        "output matrix is the embedding (there is no `lm_head` in the file), and nothing is put before a prompt, no "
        "`<s>` either. The tokenizer is a byte-level BPE that lower-cases, puts one space in front and makes every "
        "digit a token of its own; all of that is in `tokenizer.json`. The answer ends with `</s>`."
    )
