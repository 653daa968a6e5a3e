"""Models for the benches of vLLM: shapes of real ones, with weights that vLLM makes up, and tokenizers made here, so
that nothing is downloaded. Nearly every token is a whole text, so an answer's first token is its first text.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from modelnet.engines.vllm_setup import has_gpu

__all__ = ["MODELS", "Model", "write_model"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Model:
    """A shape, and what an engine needs for it."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    cache_mib: int
    architecture: str = "Llama"
    tied: bool = True
    share: float = 0.3
    """Of a GPU's memory, for weights, cache and all else."""

    def engine(self, most: int) -> dict[str, Any]:
        """vLLM's engine arguments, for as many requests at once."""
        options: dict[str, Any] = {"load_format": "dummy", "max_model_len": 2048, "max_num_seqs": most}
        options["kv_cache_memory_bytes"] = self.cache_mib * MIB
        if has_gpu():
            options |= {"gpu_memory_utilization": self.share, "max_cudagraph_capture_size": most}
        return options

    def __str__(self) -> str:
        return f"{self.architecture}, {self.layers} layers, {self.hidden} wide, {self.vocab} tokens"


MODELS = {
    "tiny": Model(256, 768, 6, 4, 2, 4096, 64),
    # Llama 3.2 1B and Qwen 2.5 7B: https://huggingface.co/meta-llama/Llama-3.2-1B, …/Qwen/Qwen2.5-7B
    "llama-1b": Model(2048, 8192, 16, 32, 8, 128_256, 18 * 1024, share=0.25),
    "qwen-7b": Model(3584, 18_944, 28, 28, 4, 152_064, 22 * 1024, architecture="Qwen2", tied=False),
}


def write_model(folder: Path, model: Model) -> None:
    """A folder without weights: a configuration, and a tokenizer of all two to four letters that there is room for."""
    folder.mkdir(parents=True)
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {char: n for n, char in enumerate(bytes_)}, list[tuple[str, str]]()
    words = ("".join(chars) for length in (2, 3, 4) for chars in itertools.product(_LETTERS, repeat=length))
    for word in itertools.islice(words, model.vocab - len(vocab)):
        merges.append((word[:-1], word[-1]))
        vocab[word] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    context = 4096
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    config = {
        "architectures": [f"{model.architecture}ForCausalLM"],
        "model_type": model.architecture.lower(),
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "intermediate_size": model.inner,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.hidden // model.heads,
        "vocab_size": model.vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": model.tied,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
