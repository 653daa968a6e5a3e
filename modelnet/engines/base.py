"""What runs a model, as the rest of modelnet sees it: prompts and sampling in, chunks of text out.

Here live the records and errors that every engine shares, and the `Engine` protocol itself. Nothing here knows a
particular engine; `modelnet.engines.select` picks one.

    EngineError                 engine_error         root of all below, itself a `ModelnetError`
    ├── BadPrompt               bad_prompt           the prompt can't be read by this model
    │   └── PromptTooLong       too_long             the prompt leaves no room for one token of answer
    ├── BadSampling             bad_sampling         a sampling parameter is out of range
    ├── DuplicateRequest        duplicate_request    a request of this id is running
    ├── EngineUnavailable       engine_unavailable   the engine can't be had here, or did not start
    └── EngineDead              engine_dead          the engine ran and runs no longer
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from modelnet.engines.steps import StepModel
from modelnet.errors import ModelnetError

__all__ = [
    "BadPrompt",
    "BadSampling",
    "Chunk",
    "DuplicateRequest",
    "Engine",
    "EngineDead",
    "EngineError",
    "EngineState",
    "EngineUnavailable",
    "FinishReason",
    "Prompt",
    "PromptTooLong",
    "Sampling",
    "aborted",
]

FinishReason = Literal["stop", "length", "abort"]


class EngineError(ModelnetError):
    """Anything an engine reports. `code` is stable and may travel on the wire."""

    code = "engine_error"


class BadPrompt(EngineError):
    """The prompt can't be read by this model; the engine is well."""

    code = "bad_prompt"


class PromptTooLong(BadPrompt):
    """The prompt leaves no room for one token of answer in the model's context; the engine is well."""

    code = "too_long"


class BadSampling(EngineError):
    """A sampling parameter is out of range."""

    code = "bad_sampling"


class DuplicateRequest(EngineError):
    """A request of this id is running in this engine."""

    code = "duplicate_request"


class EngineUnavailable(EngineError):
    """The engine can't be had on this machine, doesn't fit the model, or did not start."""

    code = "engine_unavailable"


class EngineDead(EngineError):
    """The engine ran and runs no longer: every running request ends with this, and so does `health`."""

    code = "engine_dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. Raises `BadSampling` when a value is out of range."""

    # A misspelt key in a recipe must not pass for a default.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    max_tokens: int = 256
    """Tokens of answer at most; the model's context bounds it too."""
    temperature: float = 1.0
    """0 takes the likeliest token each time; 2 at most."""
    top_p: float = 1.0
    """Smallest set of tokens whose probability reaches this, 0 < top_p <= 1."""
    top_k: int = 0
    """The k likeliest tokens; 0 for all."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    seed: int | None = None
    """Same seed, same prompt, same engine: same answer."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise BadSampling(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0.0 <= self.temperature <= 2.0:
            raise BadSampling(f"temperature must be from 0 to 2, not {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise BadSampling(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise BadSampling(f"top_k must be 0 (all) or more, not {self.top_k}")
        if any(not s for s in self.stop):
            raise BadSampling("a stop string must not be empty")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise BadSampling(f"seed must be from 0 to 2**63 - 1, not {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is asked: exactly one of the three. Raises `BadPrompt` otherwise."""

    text: str | None = None
    """Plain text; the tokenizer adds its own special tokens."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """A chat, as `{"role": …, "content": …}`, put through the model's own chat template."""
    token_ids: tuple[int, ...] | None = None
    """Taken as they are."""
    cache_salt: str | None = None
    """Prompts of different salts share nothing in the prefix cache."""

    def __post_init__(self) -> None:
        given = [n for n in ("text", "messages", "token_ids") if getattr(self, n) is not None]
        if len(given) != 1:
            raise BadPrompt(f"a prompt has exactly one of text, messages, token_ids; given: {given or 'none'}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What came since the last chunk. The text of all chunks together is the answer."""

    text: str
    """Whole characters only; may be empty while a character or a possible stop string is incomplete."""
    token_ids: tuple[int, ...]
    """All tokens drawn since the last chunk, a final end-of-text token among them."""
    finish_reason: FinishReason | None = None
    """Set on the last chunk and on no other."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens drawn so far, this chunk's included."""
    cached_tokens: int = 0
    """Of the prompt's, those found in the prefix cache."""


def aborted(prompt_tokens: int, completion_tokens: int = 0) -> Chunk:
    """The last chunk of an aborted request."""
    return Chunk(
        text="", token_ids=(), finish_reason="abort", prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """The engine at this moment, from its own counters. Speeds are moving averages, None before the first request."""

    running: int
    """Requests in the batch."""
    waiting: int
    """Requests admitted by no step yet."""
    max_running: int
    """Requests the batch holds at most."""
    kv_cache_usage: float
    """Share of the key-value cache in use, 0 to 1."""
    ttft_ms: float | None = None
    """From arrival in the engine to the first token, waiting included."""
    decode_tokens_per_s: float | None = None
    """Of one request."""
    prefill_tokens_per_s: float | None = None
    """Prompt tokens computed for one request, cached ones not counted."""
    steps: StepModel | None = None
    """What its steps take; None where that is not known here."""
    kv_cache_tokens: int = 0
    """Tokens that the key-value cache has room for; 0 where that is not known."""
    caches_prefixes: bool = False
    """Whether prompts that begin alike share what was computed."""
    prefix_hit_rate: float | None = None
    """Share of recent prompt tokens found in the prefix cache, 0 to 1; None where there is no such cache."""


class Engine(Protocol):
    """One model, running. Used from one event loop, which it never blocks."""

    @property
    def model(self) -> str:
        """The model as it was named when the engine was opened."""

    @property
    def software(self) -> str:
        """What runs it, for people: `vLLM`."""

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together; known once started."""

    async def start(self) -> None:
        """Load the model. Raises `EngineUnavailable`."""

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        """Token ids of a prompt, as the model reads it, and of an answer's beginning behind it.

        Raises `BadPrompt`, `PromptTooLong`. Takes about 1 µs a character.
        """

    def decode(self, token_ids: list[int]) -> str:
        """Their text, special tokens left out; a character that is not whole is U+FFFD."""

    def generate(self, request_id: str, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        """Stream the answer. Closing the generator or cancelling its consumer frees the request.

        Raises `BadPrompt`, `PromptTooLong`, `DuplicateRequest` before the first chunk, `EngineDead` at any time.
        """

    async def abort(self, request_id: str) -> None:
        """End a request: its consumer gets a last chunk with reason `abort`. An unknown id is no error.

        On return the request, and any whose generator was closed before the call, is out of `state`.
        """

    def state(self) -> EngineState:
        """Cheap: called for every bid."""

    async def health(self) -> None:
        """Raises `EngineDead` if the engine can't serve."""

    async def close(self) -> None:
        """Free everything; what still runs ends with `EngineDead`. Closing twice is no error."""
