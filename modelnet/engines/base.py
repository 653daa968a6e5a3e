"""What runs a model, as the rest of modelnet sees it: prompts and sampling in, chunks of text out; or texts in, vectors
or scores out.

Here live the records that every engine shares, and the `Engine` protocol itself. Nothing here knows a particular
engine; `modelnet.engines.select` picks one.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from modelnet.engines.errors import BadPrompt, BadSampling, Unsupported
from modelnet.engines.steps import StepModel
from modelnet.messages import TokenLogprob, ToolCallPart

__all__ = [
    "PLAIN",
    "Ability",
    "Chunk",
    "Embeddings",
    "Engine",
    "EngineState",
    "FinishReason",
    "Grammar",
    "Prompt",
    "Sampling",
    "Scores",
    "Sleeper",
    "aborted",
    "needed",
    "require",
    "tokenized",
]

_INLINE_CHARS = 4096

FinishReason = Literal["stop", "length", "tool_calls", "abort"]

Ability = Literal[
    "generate",
    "prompt",
    "chat",
    "top_k",
    "seed",
    "tokens",
    "choices",
    "logprobs",
    "penalties",
    "json",
    "grammar",
    "tools",
    "embed",
    "score",
]
"""What an engine can do. `generate` is answers at all, with temperature, top_p and stop. Beyond it: `prompt` texts and
`chat` messages to answer; `top_k`, `seed`; `tokens` encode and decode, so that an answer can be gone on with; `choices`
several answers at once; `penalties` also min_p; `json` answers by a JSON Schema, `grammar` by a pattern or a choice;
`tools` functions in a chat."""

PLAIN: frozenset[Ability] = frozenset({"generate", "prompt", "chat", "top_k", "seed"})
"""What an engine can do that draws tokens itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What form the answer must have: exactly one of the four. Raises `BadSampling` otherwise."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    json_schema: Mapping[str, Any] | None = None
    """JSON that keeps this schema."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    """Text that this matches as a whole."""
    choice: tuple[str, ...] = ()
    """One of these texts."""

    def __post_init__(self) -> None:
        given = [self.json_schema is not None, self.json_object, self.regex is not None, bool(self.choice)]
        if sum(given) != 1:
            raise BadSampling("a grammar has exactly one of json_schema, json_object, regex, choice")

    @property
    def is_json(self) -> bool:
        """Whether it is a form of JSON."""
        return self.json_schema is not None or self.json_object


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
    n: int = 1
    """Answers to the one prompt, 1 to 16."""
    logprobs: int | None = None
    """Tell the log probability of each token drawn, and of so many of the likeliest beside it, 0 to 20."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one's probability are left out, 0 to 1."""
    presence_penalty: float = 0.0
    """Taken from the logit of each token that is in the answer, -2 to 2."""
    frequency_penalty: float = 0.0
    """The same, as often as it is in the answer."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens in prompt or answer, above 0 to 10; 1 is off."""
    grammar: Grammar | None = None
    """What form the answer must have."""

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
        if not 1 <= self.n <= 16:
            raise BadSampling(f"n must be from 1 to 16, not {self.n}")
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise BadSampling(f"logprobs must be from 0 to 20, not {self.logprobs}")
        if not 0.0 <= self.min_p <= 1.0:
            raise BadSampling(f"min_p must be from 0 to 1, not {self.min_p}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise BadSampling(f"{name} must be from -2 to 2, not {getattr(self, name)}")
        if not 0.0 < self.repetition_penalty <= 10.0:
            raise BadSampling(f"repetition_penalty must be above 0 and at most 10, not {self.repetition_penalty}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is asked: exactly one of the three. Raises `BadPrompt` otherwise."""

    text: str | None = None
    """Plain text; the tokenizer adds its own special tokens."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """A chat, as `{"role": …, "content": …}`, put through the model's own chat template."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the model may ask to have called, in OpenAI's form; in a chat only."""
    tool_choice: Literal["auto", "none", "required"] | Mapping[str, Any] = "auto"
    """`required`: at least one call; `{"type": "function", "function": {"name": …}}`: a call of this one."""
    token_ids: tuple[int, ...] | None = None
    """Taken as they are."""
    cache_salt: str | None = None
    """Prompts of different salts share nothing in the prefix cache."""

    def __post_init__(self) -> None:
        given = [n for n in ("text", "messages", "token_ids") if getattr(self, n) is not None]
        if len(given) != 1:
            raise BadPrompt(f"a prompt has exactly one of text, messages, token_ids; given: {given or 'none'}")
        if self.tools and self.messages is None:
            raise BadPrompt("tools are of a chat: send messages with them")


def needed(prompt: Prompt, sampling: Sampling) -> frozenset[Ability]:
    """What an engine must be able to do for this."""
    wants: dict[Ability, bool] = {
        "generate": True,
        "prompt": prompt.messages is None,
        "chat": prompt.messages is not None,
        "top_k": sampling.top_k > 0,
        "seed": sampling.seed is not None,
        "tokens": prompt.token_ids is not None,
        "choices": sampling.n > 1,
        "logprobs": sampling.logprobs is not None,
        "penalties": bool(sampling.min_p or sampling.presence_penalty or sampling.frequency_penalty)
        or sampling.repetition_penalty != 1.0,
        "json": sampling.grammar is not None and sampling.grammar.is_json,
        "grammar": sampling.grammar is not None and not sampling.grammar.is_json,
        "tools": bool(prompt.tools),
    }
    return frozenset(ability for ability, wanted in wants.items() if wanted)


def require(has: frozenset[Ability], wants: frozenset[Ability], model: str) -> None:
    """Raises `Unsupported` if something is wanted that an engine hasn't got."""
    if lacking := sorted(wants - has):
        raise Unsupported(f"{model} can't do {', '.join(lacking)} as it is served here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What came since the last chunk of an answer. The text of all its chunks together is the answer."""

    text: str
    """Whole characters only; may be empty while a character or a possible stop string is incomplete."""
    token_ids: tuple[int, ...] | None
    """All tokens drawn since the last chunk, a final end-of-text token among them; None where they are not told."""
    index: int = 0
    """Which of `n` answers it belongs to, from 0."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of each of the tokens, if they were asked for."""
    tool_calls: tuple[ToolCallPart, ...] = ()
    """Calls of functions, beside the text: what of the answer's syntax stands for them is not in `text`."""
    finish_reason: FinishReason | None = None
    """Set on an answer's last chunk and on no other."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens drawn so far for all answers of the request, this chunk's included."""
    cached_tokens: int = 0
    """Of the prompt's, those found in the prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Vectors of texts, in their order."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    """Of all texts together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How well documents answer a query, in their order: higher is better."""

    scores: tuple[float, ...]
    prompt_tokens: int
    """Of all pairs together."""


async def tokenized(encode: Callable[[Prompt], list[int]], prompt: Prompt) -> list[int]:
    """A prompt's tokens. That takes about 1 µs a character: what may be long is done beside the event loop."""
    size = len(prompt.text) if prompt.text is not None else _INLINE_CHARS if prompt.messages is not None else 0
    return encode(prompt) if size < _INLINE_CHARS else await asyncio.to_thread(encode, prompt)


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
    step_times: StepModel | None = None
    """What its steps take; None where that is not known here."""
    kv_cache_tokens: int = 0
    """Tokens that the key-value cache has room for; 0 where that is not known."""
    prefix_block: int = 0
    """Tokens in a block of the prefix cache: of a prompt that begins like another, whole ones are not computed again.
    0 where nothing is shared."""
    prefix_hit_rate: float | None = None
    """Share of recent prompt tokens found in the prefix cache, 0 to 1; None where there is no such cache."""
    steps: int | None = None
    """Steps made so far: while there is work it grows, or the engine hangs. None where the engine has no steps."""


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

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can do: what it was opened for, and less if starting shows that the model can't. Anything else
        raises `Unsupported`."""

    async def start(self) -> None:
        """Load the model. Raises `EngineUnavailable`."""

    async def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        """Token ids of a prompt, as the model reads it, and of an answer's beginning behind it.

        Raises `BadPrompt`, `PromptTooLong`, and `Unsupported` for a model whose tokenizer can't be had.
        """

    async def decode(self, token_ids: list[int]) -> str:
        """Their text, special tokens left out; a character that is not whole is U+FFFD. Raises `Unsupported`."""

    def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """Stream the answer, or the `n` answers as they come. Closing the generator or cancelling its consumer frees
        the request. `adapter`: the name of one that the engine was opened with, to answer instead of the bare model.

        Raises `BadPrompt`, `BadSampling`, `Unsupported`, `DuplicateRequest` before the first chunk, `EngineDead` at
        any time.
        """

    async def embed(self, request_id: str, texts: Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        """A vector for each text; cancelling the call frees the request. `dimensions`: of models that can shorten.

        Raises `BadPrompt`, `Unsupported`, `DuplicateRequest`, `EngineDead`.
        """

    async def score(self, request_id: str, query: str, documents: Sequence[str]) -> Scores:
        """How well each document answers the query. Raises as `embed` does."""

    async def abort(self, request_id: str) -> None:
        """End a request: its consumer gets a last chunk with reason `abort`. An unknown id is no error.

        On return the request, and any whose generator was closed before the call, is out of `state`.
        """

    def state(self) -> EngineState:
        """Cheap: called for every bid."""

    def wait_s(self, tokens: int) -> float:
        """Seconds until a request of so many tokens, prompt and answer, may be given to it: 0 for now, infinite while
        it can't serve. Cheap: asked before every bid."""

    async def health(self) -> None:
        """Raises `EngineDead` if the engine can't serve."""

    async def close(self) -> None:
        """Free everything; what still runs ends with `EngineDead`. Closing twice is no error."""


@runtime_checkable
class Sleeper(Protocol):
    """An engine that can give back the memory that it computes in, and have it again sooner than another could be
    opened. It sleeps and wakes while nothing is asked of it; all else that an `Engine` tells stays as it was."""

    @property
    def can_sleep(self) -> bool:
        """Whether it can, as it was opened and on this machine."""

    async def sleep(self) -> None:
        """Give the memory back, with all that was cached. Raises `EngineDead`."""

    async def wake(self) -> None:
        """Have it again. Raises `EngineDead`, also where others have taken it meanwhile."""
