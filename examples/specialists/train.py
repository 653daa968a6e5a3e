"""Trains one specialist, or the generalist, on generated data and writes a Hugging Face folder.

    python -m examples.specialists.train normalize.date.de --minutes 4 --seed 1
    python -m examples.specialists.train generalist --minutes 1.7

The recipe: fp32 training of a small Llama, loss on the answer's tokens only, batches of 64 prompts of equal length (so
nothing is padded), AdamW, a short warm-up, a flat part, then a cosine to 2 %; bf16 weights. The development set only is
looked at here; `evaluate` measures the reported numbers.
"""

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.specialists import data
from examples.specialists.example import Example, Split
from examples.specialists.tokenizer import MAX_LENGTH, train_tokenizer

MODELS = Path(__file__).parent / "models"

BATCH = 64
WARM_UP_STEPS = 100
GENERALIST = "generalist"
HEAD_SIZE = 32
"""The smallest that vLLM's attention for CPUs takes."""
LAST_RATE = 0.02
"""The learning rate at the end, as a part of the highest."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one training run is given; stored beside the weights as `training.json`."""

    model: str
    minutes: float
    seed: int
    layers: int = 3
    hidden: int = 128
    """The width; an attention head for every 32, and three times as wide a feed-forward layer."""
    learning_rate: float = 2e-3
    flat: float = 0.3
    """The part of the time for which the learning rate stays highest."""
    pool: int = 150_000
    """Examples generated, over all capabilities."""


Pair = tuple[list[int], list[int]]
"""The tokens of a prompt and those of its answer, the end of sequence included."""


def encode(tokenizer: PreTrainedTokenizerFast, template: str, examples: Sequence[Example]) -> list[Pair]:
    """The tokens of each example."""
    prompts = tokenizer([template.format(text=example.text) for example in examples])["input_ids"]
    digits = {str(digit): tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)}
    return [
        (prompt, [*(digits[digit] for digit in example.answer), tokenizer.eos_token_id])
        for prompt, example in zip(prompts, examples, strict=True)
    ]


def batches(pairs: Sequence[Pair], rng: random.Random) -> Iterator[tuple[Tensor, int]]:
    """Endless batches whose sequences, and whose answers, are of one length each; with the length of the answers."""
    buckets: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for prompt, answer in pairs:
        buckets[len(prompt), len(answer)].append(prompt + answer)
    tensors = {key: torch.tensor(rows) for key, rows in buckets.items()}
    while True:
        epoch = []
        for key, rows in tensors.items():
            order = torch.tensor(rng.sample(range(len(rows)), len(rows)))
            parts: list[Tensor] = list(order.split(BATCH))  # type: ignore[no-untyped-call]
            # What is left of a length is a small batch with the weight of a full one, so it is used less often.
            epoch += [(key, part) for part in parts if rng.random() < len(part) / BATCH]
        rng.shuffle(epoch)
        for key, part in epoch:
            yield tensors[key][part], key[1]


def rate(done: float, step: int, recipe: Recipe) -> float:
    """The learning rate after a part of the time, as a part of the highest."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    if done < recipe.flat:
        return 1.0
    falling = min(1.0, (done - recipe.flat) / (1 - recipe.flat))
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * falling)) / 2


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A plain Llama with tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // HEAD_SIZE,
        num_key_value_heads=recipe.hidden // HEAD_SIZE,
        head_dim=HEAD_SIZE,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def fit(model: LlamaForCausalLM, pairs: Sequence[Pair], recipe: Recipe) -> int:
    """Trains for the recipe's minutes; the steps taken."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    started = reported = time.monotonic()
    step, total = 0, 0.0
    model.train()
    for rows, width in batches(pairs, random.Random(recipe.seed)):
        now = time.monotonic()
        done = (now - started) / (60 * recipe.minutes)
        if done >= 1:
            break
        if now - reported > 20:
            print(f"{recipe.model}: {done:4.0%}, step {step}, loss {total / 100:.4f}", flush=True)
            reported = now
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate(done, step, recipe)
        logits = model(rows[:, :-1], use_cache=False, logits_to_keep=width).logits
        loss = cross_entropy(logits.flatten(0, 1), rows[:, -width:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total = total * 0.99 + loss.item()
        step += 1
    return step


@torch.inference_mode()
def exact_match(model: LlamaForCausalLM, pairs: Sequence[Pair]) -> float:
    """The part of the answers that greedy decoding gets right to the last digit, with the end where it belongs."""
    model.eval()
    right = 0
    buckets: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for prompt, answer in pairs:
        buckets[len(prompt), len(answer)].append(prompt + answer)
    for (_, width), rows in buckets.items():
        full = torch.tensor(rows)
        # With every earlier token right, each next one right is the same as a right answer of greedy decoding.
        best = model(full[:, :-1], use_cache=False, logits_to_keep=width).logits.argmax(-1)
        right += int((best == full[:, -width:]).all(-1).sum())
    return right / len(pairs)


def save(
    folder: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    steps: int,
    development: dict[str, float],
) -> None:
    """Writes the folder: bf16 weights, configuration, tokenizer and the record of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=10,
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    # The name that every version of transformers knows; version 5 writes a newer one.
    settings = folder / "tokenizer_config.json"
    named = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(named, indent=2) + "\n")
    record = {
        **asdict(recipe),
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "development": development,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "modelnet.json").write_text(json.dumps(data.mapping(recipe.model, development), indent=2) + "\n")


def train(recipe: Recipe, folder: Path) -> dict[str, float]:
    """The whole run; exact match on the development set, by capability."""
    torch.manual_seed(recipe.seed)
    capabilities = data.MODELS[recipe.model]
    pool = {name: data.training(name, recipe.pool // len(capabilities), recipe.seed) for name in capabilities}
    templates = {name: data.prompt_template(recipe.model, name) for name in capabilities}
    tokenizer = train_tokenizer(
        templates[name].format(text=example.text) for name in capabilities for example in pool[name][:20_000]
    )
    pairs = [pair for name in capabilities for pair in encode(tokenizer, templates[name], pool[name])]
    lengths = [len(prompt) for prompt, _ in pairs]
    model = new_model(recipe, tokenizer)
    print(f"{recipe.model}: {sum(lengths) / len(lengths):.1f} tokens a prompt, {max(lengths)} at most", flush=True)
    steps = fit(model, pairs, recipe)
    model.to(torch.bfloat16).to(torch.float32)
    development = {
        name: exact_match(model, encode(tokenizer, templates[name], data.held_out(name, Split.DEV, 1000)))
        for name in capabilities
    }
    save(folder, model, tokenizer, recipe, steps, development)
    return development


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train one specialist, or the generalist.")
    parser.add_argument("name", choices=[*data.CAPABILITIES, *data.MODELS], help="a capability or the name of a model")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layers", type=int, help="default: 3, generalist 1")
    parser.add_argument("--hidden", type=int, help="default: 128, generalist 64")
    parser.add_argument("--flat", type=float, default=0.3, help="part of the time at the highest learning rate")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--pool", type=int, default=150_000, help="examples to generate")
    parser.add_argument("--out", type=Path, help="folder to write; default: models/NAME beside this file")
    arguments = parser.parse_args()
    model = arguments.name.removeprefix("normalize.").replace(".", "-")
    recipe = Recipe(
        model=model,
        minutes=arguments.minutes,
        seed=arguments.seed,
        layers=arguments.layers or (1 if model == GENERALIST else 3),
        hidden=arguments.hidden or (64 if model == GENERALIST else 128),
        flat=arguments.flat,
        learning_rate=arguments.learning_rate,
        pool=arguments.pool,
    )
    torch.set_num_threads(1)
    for name, accuracy in train(recipe, arguments.out or MODELS / model).items():
        print(f"{model}: {name} {accuracy:.4f} on the development set", flush=True)


if __name__ == "__main__":
    main()
