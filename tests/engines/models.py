"""Model folders for tests, written without torch: a tiny Llama of random weights, and one that follows a chain."""

import itertools
import json
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a model is."""

    hidden: int = 64
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 32
    layers: int = 2
    inner: int = 128
    context: int = CONTEXT


TINY = Shape()

CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"

# What the chain model answers, token by token; no byte twice, so each has one successor.
CHAIN = "aé日€z"
# Each the other's successor: a prompt that ends in one of them is answered until the context is full.
LOOP = "!?"


@dataclass(frozen=True, slots=True)
class Folder:
    path: Path
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        return str(self.path)

    def byte_id(self, byte: int) -> int:
        """The token of one byte, by the byte-level alphabet."""
        shown = pre_tokenizers.ByteLevel.alphabet()
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        char = chr(byte) if byte in printable else chr(256 + sum(b not in printable for b in range(byte)))
        assert char in shown
        token = self.tokenizer.token_to_id(char)
        assert token is not None
        return int(token)


def write_random(path: Path, *, seed: int = 0, chat: bool = True, shape: Shape = TINY) -> Folder:
    """Tied embeddings and bf16."""
    folder = _write_texts(path, tied=True, chat=chat, shape=shape)
    write_safetensors(path / "model.safetensors", _random_tensors(folder, seed, shape))
    return folder


def _random_tensors(folder: Folder, seed: int, shape: Shape = TINY) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    vocab = folder.tokenizer.get_vocab_size()
    tensors = _layers(shape, lambda *size: random.normal(0, 4 / np.sqrt(size[-1]), size))
    tensors["model.embed_tokens.weight"] = random.normal(0, 1, (vocab, shape.hidden))
    tensors["model.embed_tokens.weight"][:2] = 0  # the special tokens are never the likeliest
    return tensors


def write_chain(path: Path) -> Folder:
    """Its layers add nothing; its head maps a token to its successor in `CHAIN`, the last to the end of text."""
    folder = _write_texts(path, tied=False, chat=False, shape=TINY)
    vocab = folder.tokenizer.get_vocab_size()
    embed = np.random.default_rng(1).choice([-1.0, 1.0], (vocab, TINY.hidden))
    head = np.zeros((vocab, TINY.hidden))
    ids = [folder.byte_id(byte) for byte in CHAIN.encode()] + [1]
    assert len(set(ids)) == len(ids)
    for this, following in itertools.pairwise(ids):
        head[following] = embed[this]
    ping, pong = (folder.byte_id(ord(char)) for char in LOOP)
    head[pong], head[ping] = embed[ping], embed[pong]
    tensors = _layers(TINY, lambda *size: np.zeros(size))
    write_safetensors(
        path / "model.safetensors", {**tensors, "model.embed_tokens.weight": embed, "lm_head.weight": head}
    )
    return folder


CALL = (
    "I look. ",
    "<tool_call>\n",
    '{"name": "weather", ',
    '"arguments": {"city":',
    ' "Ulm"}}',
    "\n</tool_call>",
)
"""What the calling model answers, token by token."""


def write_calling(path: Path) -> Folder:
    """A chat model that calls a function, in the syntax that vLLM's parser `hermes` reads, whatever it is asked."""
    folder = _write_texts(path, tied=False, chat=True, added=CALL, chat_end="#")
    vocab = folder.tokenizer.get_vocab_size()
    embed = np.random.default_rng(2).choice([-1.0, 1.0], (vocab, TINY.hidden))
    head = np.zeros((vocab, TINY.hidden))
    ids = [folder.byte_id(ord("#")), *(folder.tokenizer.token_to_id(text) for text in CALL), 1]
    for this, following in itertools.pairwise(ids):
        head[following] = embed[this]
    tensors = _layers(TINY, lambda *size: np.zeros(size))
    write_safetensors(
        path / "model.safetensors", {**tensors, "model.embed_tokens.weight": embed, "lm_head.weight": head}
    )
    return folder


ADAPTED = ("q_proj", "v_proj", "o_proj")


def write_adapted(path: Path, base: Folder, *, seed: int) -> tuple[Path, Path]:
    """A LoRA adapter of a base of random weights, and the whole model that it makes of it, in float32."""
    random = np.random.default_rng(seed)
    rank, alpha = 4, 8
    adapter, merged = path / "adapter", path / "merged"
    adapter.mkdir(parents=True)
    shutil.copytree(base.path, merged)
    weights = {name: cut(values) for name, values in _random_tensors(base, 0).items()}
    parts: dict[str, NDArray[Any]] = {}
    for n in range(TINY.layers):
        for module in ADAPTED:
            name = f"model.layers.{n}.self_attn.{module}"
            out, inner = weights[f"{name}.weight"].shape
            a, b = cut(random.normal(0, 0.3, (rank, inner))), cut(random.normal(0, 0.3, (out, rank)))
            parts[f"base_model.model.{name}.lora_A.weight"] = a
            parts[f"base_model.model.{name}.lora_B.weight"] = b
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + b @ a * (alpha / rank)
    write_safetensors(adapter / "adapter_model.safetensors", parts)
    write_safetensors(merged / "model.safetensors", weights, whole=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ADAPTED),
        "bias": "none",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter, merged


def cut(values: NDArray[Any]) -> NDArray[np.float32]:
    """As float32, to what bf16 holds."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def write_safetensors(path: Path, tensors: dict[str, NDArray[Any]], *, whole: bool = False) -> None:
    """As bf16, by cutting float32 short; or as float32, `whole`."""
    header: dict[str, Any] = {}
    blobs = []
    offset = 0
    for name, values in tensors.items():
        floats = np.ascontiguousarray(values, np.float32)
        blob = floats.tobytes() if whole else (floats.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {
            "dtype": "F32" if whole else "BF16",
            "shape": list(values.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        offset += len(blob)
        blobs.append(blob)
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(blobs))


def _layers(shape: Shape, draw: Any) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {"model.norm.weight": np.ones(shape.hidden)}
    sizes = {
        "self_attn.q_proj": (shape.heads * shape.head_dim, shape.hidden),
        "self_attn.k_proj": (shape.kv_heads * shape.head_dim, shape.hidden),
        "self_attn.v_proj": (shape.kv_heads * shape.head_dim, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.heads * shape.head_dim),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
    }
    for n in range(shape.layers):
        for name, size in sizes.items():
            tensors[f"model.layers.{n}.{name}.weight"] = draw(*size)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{n}.{name}.weight"] = np.ones(shape.hidden)
    return tensors


def _write_texts(
    path: Path,
    *,
    tied: bool,
    chat: bool,
    added: Sequence[str] = (),
    chat_end: str = "[assistant] ",
    shape: Shape = TINY,
) -> Folder:
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog and the cat sat on the mat"], trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }
    texts: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": shape.context,
    }
    if chat:
        texts["chat_template"] = CHAT_TEMPLATE + chat_end
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps(texts))
    return Folder(path, tokenizer)
