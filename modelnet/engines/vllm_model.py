"""How a model is opened on vLLM, and what is known of it once it is loaded; the same for both drivers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from modelnet.engines.base import PLAIN, Ability, Prompt, Sampling
from modelnet.engines.pooling import Pooler
from modelnet.engines.vllm_requests import Counter, sampling_params
from modelnet.engines.vllm_setup import engine_options, has_gpu
from modelnet.engines.vllm_text import Encoder, LogprobReader
from modelnet.engines.vllm_tools import ToolSyntax, forcing_grammar

__all__ = ["LoadedModel", "VllmOptions"]

GENERATES: frozenset[Ability] = PLAIN | {"tokens", "choices", "logprobs", "penalties", "json", "grammar"}


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What an engine is opened with."""

    engine: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's own engine arguments."""
    tool_parser: str | None = None
    """vLLM's name of the syntax in which the model calls functions; None: it is given no tools."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Folders of LoRA adapters, by the names that requests have for them."""
    max_loras: int = 4
    """Adapters loaded at once at most."""
    cores: tuple[int, ...] = ()
    """What the process of an engine that has one runs on, on a machine without a GPU; empty: on any."""
    sleeps: bool = False
    """Whether it will have to give its memory back for a while."""

    @property
    def naps(self) -> bool:
        """Whether vLLM itself can do that: of a GPU's memory alone."""
        return self.sleeps and has_gpu()

    @property
    def abilities(self) -> frozenset[Ability]:
        """What the model is opened for."""
        if self.engine.get("runner") == "pooling":
            return frozenset({"tokens", "embed", "score"})
        return GENERATES | ({"tools"} if self.tool_parser is not None else frozenset())

    def arguments(self, model: str) -> dict[str, Any]:
        """vLLM's engine arguments, with the defaults that suit this machine."""
        options = dict(self.engine)
        if self.naps:
            options = {"enable_sleep_mode": True, **options}
        if self.adapters:
            room = min(self.max_loras, len(self.adapters))
            options = {"enable_lora": True, "max_loras": room, "max_cpu_loras": room, **options}
        return engine_options(model, options)


class LoadedModel:
    """A model that runs: its texts, its limits, and what it can do."""

    def __init__(self, engine: Any, tasks: Collection[str], options: VllmOptions) -> None:
        """`tasks`: what vLLM says it can. Raises `EngineUnavailable` for a tool parser that is not there."""
        config = engine.vllm_config.model_config
        self._tokenizer = engine.renderer.get_tokenizer()
        self.max_model_len: int = config.max_model_len
        self.max_running: int = engine.vllm_config.scheduler_config.max_num_seqs
        self.encoder = Encoder(self._tokenizer, max_model_len=self.max_model_len, vocab_size=config.get_vocab_size())
        self.pooler = Pooler(self._tokenizer, config, tasks) if options.engine.get("runner") == "pooling" else None
        self._tools = ToolSyntax(options.tool_parser, self._tokenizer) if options.tool_parser is not None else None
        self.abilities = self._abilities(options)

    def _abilities(self, options: VllmOptions) -> frozenset[Ability]:
        if self.pooler is None:
            return options.abilities
        can: dict[Ability, bool] = {
            "tokens": True,
            "embed": self.pooler.embeds,
            "score": self.pooler.embeds or self.pooler.scores_pairs,
        }
        return frozenset(ability for ability, able in can.items() if able)

    def request(self, token_ids: list[int], prompt: Prompt, sampling: Sampling, apart: int) -> tuple[Any, Counter]:
        """vLLM's SamplingParams, and what reads the answers. `apart`: tokens of an output. Raises `BadPrompt`,
        `BadSampling`."""
        calls, special = None, False
        if prompt.tools and prompt.tool_choice != "none":
            assert self._tools is not None
            calls, special = self._tools.reader(prompt)
            if (forced := forcing_grammar(prompt)) is not None:
                sampling = replace(sampling, grammar=forced)
        logprobs = LogprobReader(self._tokenizer, sampling.logprobs) if sampling.logprobs is not None else None
        params = sampling_params(sampling, special_tokens=special, apart=apart)
        return params, Counter(len(token_ids), logprobs=logprobs, calls=calls)
