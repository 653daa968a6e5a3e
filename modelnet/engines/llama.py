"""The Llama architecture in NumPy, float32: weights, key-value cache, one forward pass. Knows no requests or text."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelnet.engines.errors import EngineUnavailable
from modelnet.engines.weights import read_header

__all__ = ["Llama", "LlamaConfig", "Span"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """What of config.json the forward pass needs."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_theta: float
    norm_eps: float
    tied: bool

    @classmethod
    def read(cls, folder: Path) -> "LlamaConfig":
        """Raises `EngineUnavailable` for any model that this forward pass would run wrongly."""
        try:
            raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise EngineUnavailable(f"{folder} has no readable config.json: {error}") from error
        # transformers 5 writes rope_parameters, before it rope_theta and rope_scaling.
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        odd = [
            name
            for name, wrong in {
                "architectures": raw.get("architectures") != ["LlamaForCausalLM"],
                "hidden_act": raw.get("hidden_act", "silu") != "silu",
                "attention_bias": raw.get("attention_bias", False),
                "mlp_bias": raw.get("mlp_bias", False),
                "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
                "quantization_config": "quantization_config" in raw,
            }.items()
            if wrong
        ]
        if odd:
            raise EngineUnavailable(f"the NumPy engine runs plain Llama models; {folder} differs in {', '.join(odd)}")
        try:
            heads = raw["num_attention_heads"]
            return cls(
                layers=raw["num_hidden_layers"],
                hidden=raw["hidden_size"],
                heads=heads,
                kv_heads=raw.get("num_key_value_heads") or heads,
                head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
                vocab=raw["vocab_size"],
                context=raw["max_position_embeddings"],
                rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
                norm_eps=raw.get("rms_norm_eps", 1e-6),
                tied=raw.get("tie_word_embeddings", False),
            )
        except KeyError as error:
            raise EngineUnavailable(f"{folder}/config.json lacks {error}") from error


@dataclass(frozen=True, slots=True)
class Span:
    """New tokens of one sequence: their ids, the cache slot, and the position of the first."""

    slot: int
    start: int
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Floats  # (hidden, (heads + 2 * kv_heads) * head_dim)
    out: Floats  # (heads * head_dim, hidden)
    gate_up: Floats  # (hidden, 2 * intermediate)
    down: Floats  # (intermediate, hidden)
    norm_in: Floats  # (hidden,)
    norm_mid: Floats  # (hidden,)


class Llama:
    """A loaded model with a key-value cache of `slots` sequences of `context` tokens."""

    def __init__(self, folder: Path, config: LlamaConfig, *, slots: int, context: int) -> None:
        self.config = config
        weights: dict[str, Floats] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= _load(file)
        try:
            self._embed = weights["model.embed_tokens.weight"]  # (vocab, hidden)
            self._norm = weights["model.norm.weight"]
            self._head = np.ascontiguousarray((self._embed if config.tied else weights["lm_head.weight"]).T)
            self._layers = [self._layer(weights, f"model.layers.{n}.") for n in range(config.layers)]
        except KeyError as error:
            raise EngineUnavailable(f"{folder} lacks the tensor {error}") from error
        # Pages of zeros are not touched, so not resident, until a sequence grows into them.
        self._cache = np.zeros((config.layers, 2, slots, config.kv_heads, context, config.head_dim), np.float32)
        frequency = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
        angle = np.arange(context)[:, None] * np.concatenate([frequency, frequency])
        self._cos = np.cos(angle).astype(np.float32)  # (context, head_dim)
        self._sin = np.sin(angle).astype(np.float32)

    @staticmethod
    def _layer(weights: dict[str, Floats], name: str) -> _Layer:
        def joined(*parts: str) -> Floats:
            return np.ascontiguousarray(np.concatenate([weights[f"{name}{p}.weight"] for p in parts]).T)

        return _Layer(
            qkv=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            out=joined("self_attn.o_proj"),
            gate_up=joined("mlp.gate_proj", "mlp.up_proj"),
            down=joined("mlp.down_proj"),
            norm_in=weights[f"{name}input_layernorm.weight"],
            norm_mid=weights[f"{name}post_attention_layernorm.weight"],
        )

    def forward(self, spans: list[Span]) -> Floats:
        """Logits after the last token of each span, (spans, vocab). Linear layers see all spans as one batch."""
        c = self.config
        counts = [len(span.token_ids) for span in spans]
        ends = np.cumsum(counts)
        positions = np.concatenate([np.arange(s.start, s.start + n) for s, n in zip(spans, counts, strict=True)])
        x = self._embed[np.concatenate([s.token_ids for s in spans])]
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        for index, layer in enumerate(self._layers):
            qkv = (self._rms(x, layer.norm_in) @ layer.qkv).reshape(len(x), -1, c.head_dim)
            qk, v = qkv[:, : c.heads + c.kv_heads], qkv[:, c.heads + c.kv_heads :]
            half = c.head_dim // 2
            qk = qk * cos + np.concatenate([-qk[..., half:], qk[..., :half]], axis=-1) * sin
            mixed = np.empty((len(x), c.heads * c.head_dim), np.float32)
            for span, end, count in zip(spans, ends, counts, strict=True):
                rows = slice(end - count, end)
                mixed[rows] = self._attend(index, span, qk[rows, : c.heads], qk[rows, c.heads :], v[rows])
            x = x + mixed @ layer.out
            gate, up = np.split(self._rms(x, layer.norm_mid) @ layer.gate_up, 2, axis=1)
            # exp of a large -gate overflows to inf, which gives the 0 that SiLU has there
            with np.errstate(over="ignore"):
                x = x + (gate / (1.0 + np.exp(-gate)) * up) @ layer.down
        logits: Floats = self._rms(x[ends - 1], self._norm) @ self._head
        return logits

    def _attend(self, layer: int, span: Span, q: Floats, k: Floats, v: Floats) -> Floats:
        """Causal attention of one span over its slot's cache, which takes k and v in; (tokens, heads * head_dim)."""
        c = self.config
        count, length = len(q), span.start + len(q)
        keys, values = self._cache[layer, :, span.slot]  # (kv_heads, context, head_dim)
        keys[:, span.start : length] = k.transpose(1, 0, 2)
        values[:, span.start : length] = v.transpose(1, 0, 2)
        # Query heads that share a key head stand together: (kv_heads, group * tokens, head_dim).
        grouped = q.transpose(1, 0, 2).reshape(c.kv_heads, -1, c.head_dim)
        scores = grouped @ keys[:, :length].transpose(0, 2, 1) * np.float32(c.head_dim**-0.5)
        if count > 1:
            later = np.triu(np.full((count, length), -np.inf, np.float32), span.start + 1)
            scores = (scores.reshape(c.kv_heads, -1, count, length) + later).reshape(scores.shape)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ values[:, :length]
        out: Floats = mixed.reshape(c.heads, count, c.head_dim).transpose(1, 0, 2).reshape(count, -1)
        return out

    def _rms(self, x: Floats, weight: Floats) -> Floats:
        scale = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.config.norm_eps))
        out: Floats = x * scale * weight
        return out


def _load(path: Path) -> dict[str, Floats]:
    """All tensors of one file as float32; the `safetensors` package's NumPy side knows no bf16."""
    header, begin = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=begin)
    return {name: _as_float32(name, entry, data) for name, entry in header.items()}


def _as_float32(name: str, entry: dict[str, Any], data: NDArray[np.uint8]) -> Floats:
    first, last = entry["data_offsets"]
    raw = data[first:last].tobytes()
    match entry["dtype"]:
        case "BF16":  # the upper half of a float32
            flat = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        case "F16":
            flat = np.frombuffer(raw, np.float16).astype(np.float32)
        case "F32":
            flat = np.frombuffer(raw, np.float32).copy()
        case other:
            raise EngineUnavailable(f"tensor {name} has dtype {other}; the NumPy engine knows BF16, F16, F32")
    return flat.reshape(entry["shape"])
