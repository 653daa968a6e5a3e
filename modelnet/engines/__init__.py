"""What runs a model: vLLM by two drivers, or NumPy for small Llama folders, behind one interface."""

from modelnet.engines.base import Ability, Chunk, Embeddings, Engine, EngineState, Grammar, Prompt, Sampling, Scores
from modelnet.engines.continuation import continued
from modelnet.engines.errors import (
    BadPrompt,
    BadSampling,
    DuplicateRequest,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineUnavailable,
    PromptTooLong,
    Unsupported,
)
from modelnet.engines.select import EngineKind, open_engine
from modelnet.engines.template import (
    BadRecipe,
    CapabilityRecipe,
    ModelRecipe,
    OutputParser,
    PromptTemplate,
    UnparsableOutput,
    load_recipe,
)
from modelnet.engines.vllm_setup import vllm_available

__all__ = [
    "Ability",
    "BadPrompt",
    "BadRecipe",
    "BadSampling",
    "CapabilityRecipe",
    "Chunk",
    "DuplicateRequest",
    "Embeddings",
    "Engine",
    "EngineBusy",
    "EngineDead",
    "EngineError",
    "EngineKind",
    "EngineState",
    "EngineUnavailable",
    "Grammar",
    "ModelRecipe",
    "OutputParser",
    "Prompt",
    "PromptTemplate",
    "PromptTooLong",
    "Sampling",
    "Scores",
    "UnparsableOutput",
    "Unsupported",
    "continued",
    "load_recipe",
    "open_engine",
    "vllm_available",
]
