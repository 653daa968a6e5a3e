"""What runs a model: vLLM by two drivers, or NumPy for small Llama folders, behind one interface."""

from modelnet.engines.base import (
    BadPrompt,
    BadSampling,
    Chunk,
    DuplicateRequest,
    Engine,
    EngineBusy,
    EngineDead,
    EngineError,
    EngineState,
    EngineUnavailable,
    Prompt,
    PromptTooLong,
    Sampling,
    Unsupported,
)
from modelnet.engines.continuation import continued
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
    "BadPrompt",
    "BadRecipe",
    "BadSampling",
    "CapabilityRecipe",
    "Chunk",
    "DuplicateRequest",
    "Engine",
    "EngineBusy",
    "EngineDead",
    "EngineError",
    "EngineKind",
    "EngineState",
    "EngineUnavailable",
    "ModelRecipe",
    "OutputParser",
    "Prompt",
    "PromptTemplate",
    "PromptTooLong",
    "Sampling",
    "UnparsableOutput",
    "Unsupported",
    "continued",
    "load_recipe",
    "open_engine",
    "vllm_available",
]
