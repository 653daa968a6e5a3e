"""modelnet.json in a model's folder: how a contract's input becomes a prompt, and generated text its output.

    {"name": "date-de", "capabilities": {"normalize.date.de": {
        "prompt_template": "{text}=",
        "output_parser": {"regex": "(?P<y>\\\\d{4})(?P<m>\\\\d{2})(?P<d>\\\\d{2})", "output": {"value": "{y}-{m}-{d}"}},
        "sampling": {"max_tokens": 10, "temperature": 0}, "price": 12, "quality": 0.991}}}

Templates are `str.format` with plain field names only: no attributes, no indices, no conversions, because the values
come from strangers. A format may have a type, width and precision, as in `{a:03d}`.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    RootModel,
    StringConstraints,
    ValidationError,
    model_validator,
)

from modelnet.engines.base import Prompt, Sampling
from modelnet.engines.errors import BadPrompt, BadSampling, EngineError

__all__ = [
    "BadRecipe",
    "CapabilityRecipe",
    "ModelRecipe",
    "OutputParser",
    "PromptTemplate",
    "UnparsableOutput",
    "load_recipe",
]

_FORMAT_SPEC = re.compile(r"(?:[^{}]?[<>=^])?[-+ ]?0?\d{0,3}(?:\.\d{1,2})?[bcdeEfFgGnosxX%]?")


class BadRecipe(EngineError):
    """A modelnet.json that can't be used; the message says which file and what is wrong in it."""

    code = "bad_recipe"


class UnparsableOutput(EngineError):
    """The model's answer doesn't have the form its recipe promises."""

    code = "bad_output"


def _fields(template: str) -> frozenset[str]:
    """The names in a template. Raises ValueError for anything but plain fields."""
    names = set()
    for _, name, spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier():
            raise ValueError(f"{{{name}}} in {template!r} is no plain field name")
        if conversion or not _FORMAT_SPEC.fullmatch(spec or ""):
            raise ValueError(f"the format of {{{name}}} in {template!r} is more than a width, precision and type")
        names.add(name)
    return frozenset(names)


class PromptTemplate(RootModel[str]):
    """A prompt with `{fields}` of the input in it."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _fields(self.root)
        return self

    @cached_property
    def fields(self) -> frozenset[str]:
        return _fields(self.root)

    def render(self, values: Mapping[str, Any]) -> str:
        """Raises `BadPrompt` for a field that is missing, no plain value, or doesn't take the template's format."""
        chosen = {}
        for name in self.fields:
            if name not in values:
                raise BadPrompt(f"the input lacks {name!r}")
            if not isinstance(values[name], str | int | float):
                raise BadPrompt(f"{name!r} in the input must be text or a number")
            chosen[name] = values[name]
        try:
            return self.root.format_map(chosen)
        except (ValueError, TypeError, OverflowError) as error:
            raise BadPrompt(f"the input does not fit the model's prompt: {error}") from error


class OutputParser(BaseModel):
    """A pattern with named groups for the whole answer, and the output to fill in from them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    regex: str
    """Matched against the whole generated text without surrounding white space."""
    output: dict[str, JsonValue]
    """Strings in it, at any depth, are templates over the groups; other values stay."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            groups = self._pattern.groupindex.keys()
        except re.error as error:
            raise ValueError(f"regex: {error}") from error
        for template in _strings(self.output):
            if unknown := sorted(_fields(template) - groups):
                raise ValueError(f"the regex has no group {', '.join(unknown)}")
        return self

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.regex)

    def parse(self, text: str) -> dict[str, Any]:
        """Raises `UnparsableOutput`."""
        match = self._pattern.fullmatch(text.strip())
        if match is None:
            raise UnparsableOutput(f"the model answered {text[:80]!r}, which does not match {self.regex!r}")
        try:
            return {name: _filled(value, match.groupdict("")) for name, value in self.output.items()}
        except ValueError as error:
            raise UnparsableOutput(f"the model answered {text[:80]!r}: {error}") from error


def _strings(value: JsonValue) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in inner for text in _strings(item)]


def _filled(value: JsonValue, groups: dict[str, str]) -> Any:
    if isinstance(value, str):
        return value.format_map(groups)
    if isinstance(value, dict):
        return {name: _filled(item, groups) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, groups) for item in value]
    return value


class CapabilityRecipe(BaseModel):
    """How one capability's contract maps onto the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_template: PromptTemplate
    output_parser: OutputParser | None = None
    """Without one the output is `{"text": <the generated text>}`."""
    sampling: Sampling = Sampling()
    price: int = Field(default=0, ge=0)
    """Micro-credits a task."""
    quality: float | None = Field(default=None, ge=0, le=1)
    """Share of right answers measured on held-out data."""

    def prompt(self, values: Mapping[str, Any]) -> Prompt:
        """Raises `BadPrompt`."""
        return Prompt(text=self.prompt_template.render(values))

    def parse(self, text: str) -> dict[str, Any]:
        """Raises `UnparsableOutput`."""
        return {"text": text} if self.output_parser is None else self.output_parser.parse(text)


_CapabilityName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*$")]


class ModelRecipe(BaseModel):
    """A whole modelnet.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    capabilities: dict[_CapabilityName, CapabilityRecipe] = Field(min_length=1)
    about: dict[str, JsonValue] = {}
    """Anything for a person to read: how it was trained, on what, its licence."""


def load_recipe(folder: str | Path) -> ModelRecipe | None:
    """The folder's modelnet.json, None if there is none. Raises `BadRecipe`."""
    file = Path(folder) / "modelnet.json"
    if not file.is_file():
        return None
    try:
        return ModelRecipe.model_validate_json(file.read_bytes())
    except BadSampling as error:
        raise BadRecipe(f"{file}: sampling: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise BadRecipe(f"{file}: {problems}") from error
