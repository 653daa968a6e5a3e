"""Requests to vLLM and what comes back, shared by both drivers; and vLLM's statistics behind one class.

vLLM is imported inside functions: this module must load where vLLM is absent.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from modelnet.deltas import interval_s
from modelnet.engines.base import Chunk, EngineState, Grammar, Sampling
from modelnet.engines.errors import BadPrompt, BadSampling, EngineError, EngineUnavailable
from modelnet.engines.meter import Meter
from modelnet.engines.pooling import Pooled
from modelnet.engines.steps import StepModel
from modelnet.engines.vllm_text import LogprobReader
from modelnet.engines.vllm_tools import CallReader
from modelnet.messages import ToolCallPart

__all__ = ["Counter", "Probe", "engine_args", "pooled", "refused", "sampling_params", "token_input", "unknown_options"]


MOST_TOKENS_APART = 8
"""A burst is met by what was measured before it: not more than this may wait when steps become slower."""
STEP_DETAILS = "enable_logging_iteration_details"
"""vLLM's option to say what each step was made of. It goes to the stat loggers; it is printed where INFO is."""


def engine_args(options: dict[str, Any]) -> Any:
    """vLLM's AsyncEngineArgs, which LLMEngine takes as well. Raises `EngineUnavailable` for an unknown option."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    if unknown := unknown_options(options):
        raise EngineUnavailable(f"vLLM has no engine option {', '.join(unknown)}")
    if not unknown_options([STEP_DETAILS]):
        options = {STEP_DETAILS: True, **options}
    return AsyncEngineArgs(**options)


def unknown_options(options: Iterable[str]) -> list[str]:
    """Those that are no engine arguments of vLLM's."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    return sorted(set(options) - known)


def sampling_params(sampling: Sampling, *, special_tokens: bool = False, apart: int = 1) -> Any:
    """vLLM's SamplingParams. `special_tokens`: they stand in the text. `apart`: tokens of an output, beside the first
    and the last, where this vLLM knows that; see `Probe.tokens_apart`. Raises `BadSampling`."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMError
    from vllm.sampling_params import RequestOutputKind

    # vLLM refuses several answers at temperature 0, of which each is the likeliest.
    several_greedy = sampling.n > 1 and sampling.temperature == 0
    try:
        return SamplingParams(
            n=sampling.n,
            max_tokens=sampling.max_tokens,
            temperature=1.0 if several_greedy else sampling.temperature,
            top_p=sampling.top_p,
            top_k=1 if several_greedy else sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            stop=list(sampling.stop),
            seed=sampling.seed,
            logprobs=sampling.logprobs,
            structured_outputs=_structured(sampling.grammar) if sampling.grammar is not None else None,
            skip_special_tokens=not special_tokens,
            output_kind=RequestOutputKind.DELTA,
            **({"stream_interval": apart} if "stream_interval" in SamplingParams.__struct_fields__ else {}),
        )
    except (VLLMError, ValueError) as error:
        raise BadSampling(f"vLLM refused the sampling parameters: {error}") from error


def _structured(grammar: Grammar) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if grammar.json_schema is not None:
        return StructuredOutputsParams(json=dict(grammar.json_schema))
    if grammar.regex is not None:
        return StructuredOutputsParams(regex=grammar.regex)
    if grammar.choice:
        return StructuredOutputsParams(choice=list(grammar.choice))
    return StructuredOutputsParams(json_object=True)


def refused(error: Exception, sampling: Sampling) -> EngineError:
    """What a request's refusal by vLLM is."""
    kind = BadSampling if sampling.grammar is not None else BadPrompt
    return kind(f"vLLM refused the request: {error}")


def token_input(token_ids: list[int], cache_salt: str | None = None) -> dict[str, Any]:
    """A prompt in vLLM's rendered form, which it takes without tokenizing or a thread hop of its own."""
    rendered: dict[str, Any] = {"type": "token", "prompt_token_ids": token_ids}
    return rendered if cache_salt is None else {**rendered, "cache_salt": cache_salt}


class Counter:
    """Turns one request's outputs into chunks, counting its tokens and reading its calls of functions."""

    def __init__(
        self,
        prompt_tokens: int,
        *,
        logprobs: LogprobReader | None = None,
        calls: Callable[[], CallReader] | None = None,
    ) -> None:
        """`calls` makes a reader for each answer."""
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._logprobs, self._calls = logprobs, calls
        self._readers: dict[int, CallReader] = {}
        self._called: set[int] = set()

    def chunks(self, output: Any) -> list[Chunk | EngineError]:
        """One for each answer that goes on in this RequestOutput."""
        cached = max(output.num_cached_tokens or 0, 0)
        return [self._chunk(completion, cached) for completion in output.outputs]

    def _chunk(self, completion: Any, cached: int) -> Chunk | EngineError:
        ids, text, reason = tuple(completion.token_ids), completion.text, completion.finish_reason
        self._completion_tokens += len(ids)
        if reason == "error":
            return EngineError("vLLM gave this request up")
        if reason == "repetition":
            reason = "stop"
        logprobs = self._logprobs.read(ids, completion.logprobs or ()) if self._logprobs is not None else None
        parts: tuple[ToolCallPart, ...] = ()
        if self._calls is not None:
            reader = self._readers.get(completion.index)
            if reader is None:
                reader = self._readers[completion.index] = self._calls()
            text, parts = reader.read(text, ids, last=reason is not None)
            if parts:
                self._called.add(completion.index)
            if reason == "stop" and completion.index in self._called:
                reason = "tool_calls"
        return Chunk(
            text=text,
            token_ids=ids,
            index=completion.index,
            logprobs=logprobs,
            tool_calls=parts,
            finish_reason=reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=cached,
        )


def pooled(output: Any) -> Pooled | EngineError:
    """What vLLM gives for a pooling request."""
    if getattr(output, "error", None) is not None:
        return EngineError(f"vLLM gave this request up: {output.error}")
    data = output.outputs.data.flatten().float().tolist()
    return Pooled(tuple(data), len(output.prompt_token_ids))


def _nothing(*_: Any) -> None:
    """What is done about what nobody wants to know."""


class Probe:
    """The engine's numbers, as vLLM hands them to a stat logger.

    vLLM calls that interface unstable: nothing else of ours touches it. Several engine ranks (data parallel) add up.
    """

    def __init__(self) -> None:
        self.meter = Meter()
        self.steps = StepModel()
        self._made = 0
        """Steps that were told of."""
        self.kv_cache_tokens = 0
        """Tokens that the key-value cache has room for."""
        self.prefix_block = 0
        self._ranks: dict[int, Any] = {}
        self._since: dict[int, float] = {}
        """When each rank's step began, if one did."""

    def configured(self, config: Any) -> None:
        """The engine is up: what its vLLM configuration says of its cache."""
        cache = config.cache_config
        self.kv_cache_tokens = int((cache.num_gpu_blocks or 0) * (cache.block_size or 0))
        self.prefix_block = int(cache.block_size or 0) if cache.enable_prefix_caching else 0

    def tokens_apart(self, requests: int) -> int:
        """How many tokens of an answer come between two of its deltas while so many requests are at work: vLLM need not
        tell of each by itself."""
        token_s = self.meter.token_s
        if token_s is None:
            return 1
        return min(max(int(interval_s(requests) / token_s), 1), MOST_TOKENS_APART)

    def loggers(self) -> list[Any]:
        """For `stat_loggers=`. One in the place of vLLM's for Prometheus, which it adds where none is there: nobody
        reads that here, and it makes several entries for each request at every step."""
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        record = self._record

        class Logger(PrometheusStatLogger):  # type: ignore[misc]
            def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
                """Without its metrics."""

            def record(
                self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
            ) -> None:
                record(engine_idx, scheduler_stats, iteration_stats)

            log_engine_initialized = record_sleep_state = record_admission_rejection = _nothing

        return [Logger]

    def step_begins(self) -> None:
        """Of the only rank, where the driver knows. One that follows another at once began when that ended."""
        self._since.setdefault(0, time.monotonic())

    def idle(self) -> None:
        """Nothing is left to do, and no step has ended for it."""
        self._since.clear()

    def _step_ended(self, rank: int, scheduler: Any, iteration: Any) -> None:
        """Where the driver does not know when steps begin, the first after a pause began when its request arrived."""
        now, details = time.monotonic(), scheduler.iteration_details
        began = self._since.pop(rank, None)
        if scheduler.num_running_reqs or scheduler.num_waiting_reqs:
            self._since[rank] = now
        if details is None or details.is_dummy:
            return
        if not details.num_generation_requests and iteration is not None and iteration.time_to_first_tokens_iter:
            began = max(began or 0.0, now - max(iteration.time_to_first_tokens_iter))
        if began is not None:
            held = int(scheduler.kv_cache_usage * self.kv_cache_tokens)
            self.steps.learn(details.num_generation_requests, details.num_ctx_tokens, held, now - began)

    def _record(self, rank: int, scheduler: Any, iteration: Any) -> None:
        self._made += 1
        if scheduler is not None:
            self._step_ended(rank, scheduler, iteration)
            self._ranks[rank] = scheduler
            prefix = scheduler.prefix_cache_stats
            if prefix is not None:
                self.meter.prefix(prefix.queries, prefix.hits)
        if iteration is None:
            return
        for seconds in iteration.time_to_first_tokens_iter:
            self.meter.first_token(seconds)
        if gaps := iteration.inter_token_latencies_iter:
            self.meter.token(sum(gaps) / len(gaps))
        for done in iteration.finished_requests:
            self.meter.prefill(done.num_prompt_tokens - max(done.num_cached_tokens, 0), done.prefill_time)

    def state(
        self,
        *,
        max_running: int,
        running: int | None = None,
        waiting: int | None = None,
        kv_cache_usage: float | None = None,
    ) -> EngineState:
        """The last numbers recorded, where the driver doesn't know fresher ones."""
        ranks = self._ranks.values()
        if running is None:
            running = sum(r.num_running_reqs for r in ranks)
        if waiting is None:
            waiting = sum(r.num_waiting_reqs + r.num_skipped_waiting_reqs for r in ranks)
        if kv_cache_usage is None:
            kv_cache_usage = max((r.kv_cache_usage for r in ranks), default=0.0)
        return EngineState(
            running=running,
            waiting=waiting,
            max_running=max_running,
            kv_cache_usage=kv_cache_usage,
            ttft_ms=self.meter.ttft_ms,
            decode_tokens_per_s=self.meter.decode_tokens_per_s,
            prefill_tokens_per_s=self.meter.prefill_tokens_per_s,
            prefix_hit_rate=self.meter.prefix_hit_rate,
            steps=self._made,
            step_times=self.steps,
            kv_cache_tokens=self.kv_cache_tokens,
            prefix_block=self.prefix_block,
        )
