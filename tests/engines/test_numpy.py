"""The NumPy engine's arithmetic, against transformers; what it refuses; how it draws and cuts text."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelnet.engines import EngineUnavailable, Prompt, Sampling, open_engine
from modelnet.engines.llama import Llama, LlamaConfig, Span
from modelnet.engines.numpy_llama import draw
from modelnet.engines.tokenizer import FolderTokenizer, TextStream
from modelnet.engines.weights import count_parameters
from tests.engines.models import CONTEXT, TINY, Folder, write_random

PROMPTS = ["the quick brown fox", "a", "the cat sat on the mat and the dog", "zzz \n\t é"]


async def test_greedy_answers_equal_those_of_transformers(random_folder: Folder) -> None:
    torch = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(random_folder.name, dtype=torch.float32)
    engine = open_engine(random_folder.name, kind="numpy")
    await engine.start()
    try:
        for text in PROMPTS:
            ids = random_folder.tokenizer.encode(text).ids
            expected = model.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=40, pad_token_id=0, eos_token_id=None
            )[0, len(ids) :].tolist()
            sampling = Sampling(temperature=0, max_tokens=40)
            got = [t async for c in engine.generate("r", Prompt(text=text), sampling) for t in c.token_ids or ()]
            assert got == expected
            assert len(set(got)) > 5  # a model stuck on one token would prove little
    finally:
        await engine.close()


def test_spans_of_prompts_and_single_tokens_mix(random_folder: Folder) -> None:
    config = LlamaConfig.read(random_folder.path)
    ids = random_folder.tokenizer.encode("the quick brown fox jumps over").ids
    whole = Llama(random_folder.path, config, slots=3, context=64)
    expected = whole.forward([Span(0, 0, ids)])[0]
    parts = Llama(random_folder.path, config, slots=3, context=64)
    parts.forward([Span(2, 0, ids[:-1]), Span(0, 0, [7, 8])])
    got = parts.forward([Span(0, 2, [9]), Span(2, len(ids) - 1, ids[-1:]), Span(1, 0, [5, 6, 7])])[1]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_parameters_are_counted_from_the_header(random_folder: Folder, tmp_path: Path) -> None:
    hidden, kv = TINY.hidden, TINY.kv_heads * TINY.head_dim
    layer = 2 * hidden * hidden + 2 * kv * hidden + 3 * hidden * TINY.inner + 2 * hidden
    vocab = random_folder.tokenizer.get_vocab_size()
    assert count_parameters(random_folder.path) == TINY.layers * layer + vocab * hidden + hidden
    assert count_parameters(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="no safetensors file"):
        count_parameters(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
    ],
)
async def test_a_model_it_would_run_wrongly_is_refused(folder: Path, change: dict[str, Any], named: str) -> None:
    write_random(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    engine = open_engine(str(folder), kind="numpy")
    with pytest.raises(EngineUnavailable, match=named):
        await engine.start()
    await engine.close()


async def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    write_random(folder)
    head = json.dumps({"x": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"0")
    engine = open_engine(str(folder), kind="numpy")
    with pytest.raises(EngineUnavailable, match="I8"):
        await engine.start()


async def test_max_model_len_is_the_smaller_of_asked_and_own(random_folder: Folder) -> None:
    for asked, got in ((64, 64), (10 * CONTEXT, CONTEXT)):
        engine = open_engine(random_folder.name, kind="numpy", max_model_len=asked)
        await engine.start()
        assert engine.max_model_len == got
        await engine.close()


def test_draw_keeps_to_the_likeliest() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    random = np.random.default_rng(0)

    def drawn(**options: Any) -> set[int]:
        return {draw(logits, Sampling(**options), random) for _ in range(300)}

    assert drawn(temperature=0) == {1}
    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {1, 3}
    assert drawn(top_p=0.69) == {1, 3}
    assert drawn(top_p=0.05) == {1}
    assert drawn(temperature=0.01) == {1}


def test_draw_follows_the_probabilities() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    random = np.random.default_rng(0)
    counts = np.bincount([draw(logits, Sampling(), random) for _ in range(4000)]) / 4000
    np.testing.assert_allclose(counts, [0.1, 0.4, 0.2, 0.3], atol=0.03)


@pytest.mark.parametrize("stop", [(), ("c",), ("bc", "abcd"), ("x", "ef"), ("efgh",), ("h",)])
def test_stop_strings_cut_at_the_first_complete_one(random_folder: Folder, stop: tuple[str, ...]) -> None:
    text = "abcdefg"
    stream = TextStream(random_folder.tokenizer, [], stop)
    taken = ""
    for char in text:
        found = stream.push(random_folder.byte_id(ord(char)))
        taken += stream.take(last=found)
        if found:
            break
    else:
        taken += stream.take(last=True)
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert taken == text[: min(ends)[1] if ends else None]


def test_end_ids_come_from_every_file_that_names_one(folder: Path) -> None:
    write_random(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert FolderTokenizer(folder).end_ids == {1, 7, 9}


@pytest.mark.parametrize("template", ["{{ raise_exception('no system') }}", "{% for %}", "{{ messages.x.y }}"])
def test_a_template_that_refuses_is_a_bad_prompt(folder: Path, template: str) -> None:
    from modelnet.engines import BadPrompt

    write_random(folder)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(BadPrompt, match="chat template refused"):
        FolderTokenizer(folder).encode(Prompt(messages=({"role": "user", "content": "a"},)))
