"""What engines report.

EngineError                 engine_error         root of all below, itself a `ModelnetError`
├── BadPrompt               bad_prompt           the prompt can't be read by this model
│   └── PromptTooLong       too_long             the prompt leaves no room for one token of answer
├── BadSampling             bad_sampling         a sampling parameter is out of range
├── Unsupported             unsupported          this engine or this model can't do that at all
├── DuplicateRequest        duplicate_request    a request of this id is running
├── EngineBusy              busy                 the engine takes nothing more for now
├── EngineUnavailable       engine_unavailable   the engine can't be had here, or did not start
└── EngineDead              engine_dead          the engine ran and runs no longer
"""

from modelnet.errors import ModelnetError

__all__ = [
    "BadPrompt",
    "BadSampling",
    "DuplicateRequest",
    "EngineBusy",
    "EngineDead",
    "EngineError",
    "EngineUnavailable",
    "PromptTooLong",
    "Unsupported",
]


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


class Unsupported(EngineError):
    """This engine, or this model on it, can't do that at all; another may."""

    code = "unsupported"


class DuplicateRequest(EngineError):
    """A request of this id is running in this engine."""

    code = "duplicate_request"


class EngineBusy(EngineError):
    """The engine takes nothing more for now: a server's rate limit is reached."""

    code = "busy"


class EngineUnavailable(EngineError):
    """The engine can't be had on this machine, doesn't fit the model, or did not start."""

    code = "engine_unavailable"


class EngineDead(EngineError):
    """The engine ran and runs no longer: every running request ends with this, and so does `health`."""

    code = "engine_dead"
