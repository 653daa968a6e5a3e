"""A model folder's tokenizer and chat template, without transformers: for the NumPy engine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from modelnet.engines.base import Prompt
from modelnet.engines.errors import BadPrompt, EngineUnavailable
from modelnet.engines.prompts import plain_messages

__all__ = ["FolderTokenizer", "TextStream"]


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


class FolderTokenizer:
    """tokenizer.json, and from the files beside it the end-of-text ids and the chat template."""

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise EngineUnavailable(f"{folder} has no tokenizer.json")
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        self._config = _read_json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        self._template = template.read_text() if template.is_file() else self._config.get("chat_template")
        self.end_ids = frozenset(self._end_ids(folder))

    def _end_ids(self, folder: Path) -> list[int]:
        ids: list[int] = []
        for source in (_read_json(folder / "config.json"), _read_json(folder / "generation_config.json")):
            given = source.get("eos_token_id")
            ids += given if isinstance(given, list) else [given] if isinstance(given, int) else []
        token = self._special("eos_token")
        own = self.tokenizer.token_to_id(token) if token else None
        return ids if own is None else [*ids, own]

    def _special(self, name: str) -> str | None:
        token = self._config.get(name)
        return token.get("content") if isinstance(token, Mapping) else token

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        """A prompt and the beginning of its answer. Raises `BadPrompt`. Safe in any thread."""
        if prompt.token_ids is not None:
            begun = self.tokenizer.encode(answer, add_special_tokens=False).ids if answer else ()
            return [*prompt.token_ids, *begun]
        if prompt.text is not None:
            return list(self.tokenizer.encode(prompt.text + answer).ids)
        return list(self.tokenizer.encode(self._chat(prompt) + answer, add_special_tokens=False).ids)

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def _chat(self, prompt: Prompt) -> str:
        messages = plain_messages(prompt.messages or ())
        if not isinstance(self._template, str):
            raise BadPrompt("this model has no chat template: send text, not messages")
        # The environment of transformers' apply_chat_template: templates are written for it. Sandboxed, because a
        # template is code that comes with a model.
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refuse
        names = {n: self._special(n) or "" for n in ("bos_token", "eos_token", "unk_token", "pad_token")}
        try:
            return environment.from_string(self._template).render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **names
            )
        except TemplateError as error:
            raise BadPrompt(f"the model's chat template refused the messages: {error}") from error


def _refuse(message: str) -> None:
    raise BadPrompt(f"the model's chat template refused the messages: {message}")


class TextStream:
    """Token ids into text, by whole characters; holds back what may become a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        # Primed with the prompt: whether a first token begins with a space depends on what stands before it.
        self._stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)
        self._stop = stop
        self._held = max((len(s) for s in stop), default=1) - 1
        self._text = ""
        self._sent = 0

    def push(self, token_id: int) -> bool:
        """Take a token in; whether a stop string is complete, which then is cut off."""
        new = self._stream.step(self._tokenizer, token_id) or ""
        begin = max(0, len(self._text) - self._held)
        self._text += new
        found = [(at + len(s), at) for s in self._stop if (at := self._text.find(s, begin)) >= 0]
        if found:
            self._text = self._text[: min(found)[1]]  # the one complete first, as token by token it would be
        return bool(found)

    def take(self, *, last: bool) -> str:
        """The text that is sure and was not taken yet."""
        end = len(self._text) if last else max(self._sent, len(self._text) - self._held)
        text, self._sent = self._text[self._sent : end], max(self._sent, end)
        return text
