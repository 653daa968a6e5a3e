"""Small Llama models in plain NumPy behind the engine interface, for where vLLM's packages can't be had.

Continuous batching: each step takes waiting requests in, runs prompts and single tokens as one batch, and draws one
token for each.
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelnet.engines.base import PLAIN, Ability, Chunk, EngineState, FinishReason, Prompt, Sampling
from modelnet.engines.errors import EngineUnavailable, Unsupported
from modelnet.engines.llama import Llama, LlamaConfig, Span
from modelnet.engines.meter import Meter
from modelnet.engines.pooling import Pooler, PoolRequest
from modelnet.engines.prompts import checked_token_ids
from modelnet.engines.stepping import Item, StepThread
from modelnet.engines.steps import StepModel
from modelnet.engines.thread_engine import ThreadEngine
from modelnet.engines.tokenizer import FolderTokenizer, TextStream

__all__ = ["NumpyCore", "numpy_engine"]


# One for all: at these sizes NumPy hardly ever lets go of the interpreter lock, and seven threads fighting for it gave
# half the short answers that one gives.
_numpy_thread = StepThread("numpy-llama")


def numpy_engine(model: str, *, max_model_len: int | None = None, max_num_seqs: int = 32) -> ThreadEngine:
    """`max_model_len` in tokens, at most and by default the model's own; `max_num_seqs` requests in a batch."""
    core = NumpyCore(model, max_model_len=max_model_len, max_num_seqs=max_num_seqs)
    return ThreadEngine(core, _numpy_thread)


@dataclass(slots=True)
class _Request:
    key: str
    prompt_ids: list[int]
    sampling: Sampling
    text: TextStream
    random: np.random.Generator
    arrived: float
    slot: int = -1
    last_token_at: float = 0.0
    token_ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)


class NumpyCore:
    """A `StepCore`."""

    software = "NumPy"
    abilities: frozenset[Ability] = PLAIN | {"tokens"}
    pooler: Pooler | None = None

    def __init__(self, model: str, *, max_model_len: int | None, max_num_seqs: int) -> None:
        self.model = model
        self.max_model_len = max_model_len or 0
        self._max_running = max_num_seqs
        self._free = list(range(max_num_seqs))
        self._waiting: deque[_Request] = deque()
        self._running: dict[str, _Request] = {}
        self._meter = Meter()
        self._steps = 0
        self._step_times = StepModel()
        self._llama: Llama | None = None
        self._tokenizer: FolderTokenizer | None = None
        self._vocab = 0

    def load(self) -> None:
        folder = Path(self.model)
        if not folder.is_dir():
            raise EngineUnavailable(f"the NumPy engine needs a local model folder; {self.model} is none")
        config = LlamaConfig.read(folder)
        self.max_model_len = min(self.max_model_len or config.context, config.context)
        self._vocab = config.vocab
        self._tokenizer = FolderTokenizer(folder)
        self._llama = Llama(folder, config, slots=self._max_running, context=self.max_model_len)

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        assert self._tokenizer is not None
        ids = self._tokenizer.encode(prompt, answer)
        return checked_token_ids(ids, max_model_len=self.max_model_len, vocab_size=self._vocab)

    def decode(self, token_ids: list[int]) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(token_ids)

    def add(self, key: str, token_ids: list[int], prompt: Prompt, sampling: Sampling, adapter: str | None) -> None:
        assert self._tokenizer is not None
        if adapter is not None:
            raise Unsupported("the NumPy engine has no adapters")
        text = TextStream(self._tokenizer.tokenizer, token_ids, sampling.stop)
        random = np.random.default_rng(sampling.seed)
        self._waiting.append(_Request(key, token_ids, sampling, text, random, time.monotonic()))

    def pool(self, key: str, request: PoolRequest) -> None:
        raise Unsupported("the NumPy engine has no pooling models")

    def abort(self, keys: Iterable[str]) -> None:
        gone = set(keys)
        self._waiting = deque(request for request in self._waiting if request.key not in gone)
        for key in gone & self._running.keys():
            self._free.append(self._running.pop(key).slot)

    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def step(self) -> list[tuple[str, Item]]:
        assert self._llama is not None
        self._steps += 1
        began = time.monotonic()
        while self._waiting and self._free:
            request = self._waiting.popleft()
            request.slot = self._free.pop()
            self._running[request.key] = request
        batch = list(self._running.values())
        if not batch:
            return []
        logits = self._llama.forward([self._span(request) for request in batch])
        now = time.monotonic()
        new = [r for r in batch if not r.token_ids]
        prefill = sum(len(r.prompt_ids) for r in new)
        self._meter.prefill(prefill, now - began)
        self._step_times.learn(len(batch) - len(new), prefill, self._held(), now - began)
        items: list[tuple[str, Item]] = []
        for request, row in zip(batch, logits, strict=True):
            if request.token_ids:
                self._meter.token(now - request.last_token_at)
            else:
                self._meter.first_token(now - request.arrived)
            request.last_token_at = now
            items.append((request.key, self._advance(request, row)))
        return items

    @staticmethod
    def _span(request: _Request) -> Span:
        if request.token_ids:
            return Span(request.slot, request.length - 1, request.token_ids[-1:])
        return Span(request.slot, 0, request.prompt_ids)

    def _advance(self, request: _Request, logits: NDArray[np.float32]) -> Chunk:
        assert self._tokenizer is not None
        token = draw(logits, request.sampling, request.random)
        request.token_ids.append(token)
        reason: FinishReason | None = None
        if token in self._tokenizer.end_ids or request.text.push(token):
            reason = "stop"
        elif len(request.token_ids) >= request.sampling.max_tokens or request.length >= self.max_model_len:
            reason = "length"
        if reason is not None:
            self.abort([request.key])
        return Chunk(
            text=request.text.take(last=reason is not None),
            token_ids=(token,),
            finish_reason=reason,
            prompt_tokens=len(request.prompt_ids),
            completion_tokens=len(request.token_ids),
        )

    def _held(self) -> int:
        """Tokens in the cache."""
        return sum(request.length for request in list(self._running.values()))

    def state(self) -> EngineState:
        running, held = list(self._running.values()), self._held()
        return EngineState(
            running=len(running),
            waiting=len(self._waiting),
            max_running=self._max_running,
            kv_cache_usage=held / (self._max_running * self.max_model_len) if held else 0.0,
            ttft_ms=self._meter.ttft_ms,
            decode_tokens_per_s=self._meter.decode_tokens_per_s,
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            steps=self._steps,
            step_times=self._step_times,
        )

    def close(self) -> None:
        self._waiting.clear()
        self._running.clear()
        self._llama = None


def draw(logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """One token id: temperature, then the k likeliest, then the nucleus of `top_p`."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    scaled = logits[order].astype(np.float64) / sampling.temperature
    probability = np.exp(scaled - scaled[0])
    cumulative = np.cumsum(probability / probability.sum())
    # The first token that reaches top_p belongs to the nucleus.
    kept = min(int(np.searchsorted(cumulative, sampling.top_p)) + 1, len(order))
    chosen = int(np.searchsorted(cumulative[:kept], random.random() * cumulative[kept - 1], side="right"))
    return int(order[min(chosen, kept - 1)])
