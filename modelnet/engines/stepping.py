"""Model runners that advance by steps, and the thread that steps them.

`StepCore` is what such a runner fulfils (vLLM's LLMEngine, the NumPy one); `StepThread` steps one or more in turn and
sleeps on a condition while none has work.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Protocol

from modelnet.engines.base import Ability, Chunk, EngineState, Prompt, Sampling
from modelnet.engines.errors import EngineError
from modelnet.engines.pooling import Pooled, Pooler, PoolRequest

__all__ = ["Item", "StepCore", "StepThread"]

Item = Chunk | Pooled | EngineError
"""What a step has for a request."""


class StepCore(Protocol):
    """A model runner. All but `encode` and `state` are called on the stepping thread only."""

    model: str
    software: str
    max_model_len: int
    abilities: frozenset[Ability]
    pooler: Pooler | None
    """Of a model that gives vectors or scores."""

    def load(self) -> None: ...

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        """Raises `BadPrompt`, `PromptTooLong`. Called on any thread."""

    def decode(self, token_ids: list[int]) -> str:
        """Called on any thread."""

    def add(self, key: str, token_ids: list[int], prompt: Prompt, sampling: Sampling, adapter: str | None) -> None:
        """`token_ids`: the prompt's. Raises `EngineError`s of the request's own."""

    def pool(self, key: str, request: PoolRequest) -> None:
        """Begin a request that ends with a `Pooled`. Only where there is a `pooler`."""

    def abort(self, keys: Iterable[str]) -> None: ...

    def busy(self) -> bool: ...

    def step(self) -> list[tuple[str, Item]]: ...

    def state(self) -> EngineState: ...

    def close(self) -> None: ...


class _Steppable(Protocol):
    def busy(self) -> bool: ...

    def step(self) -> None:
        """Must not raise."""


class StepThread:
    """One thread that steps its members in turn, a step each, and runs calls handed to it between steps."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._members: list[_Steppable] = []
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def join(self, member: _Steppable) -> None:
        """Step this member from now on. The first one starts the thread."""
        with self._wake:
            self._members.append(member)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def leave(self, member: _Steppable) -> None:
        """Step this member no longer. After the last one the thread ends."""
        with self._wake:
            if member in self._members:
                self._members.remove(member)
            self._wake.notify()

    @property
    def members(self) -> int:
        return len(self._members)

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run on the thread, after the calls handed in before."""
        future: Future[Any] = Future()
        with self._wake:
            self._calls.append((lambda: function(*args), future))
            self._wake.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._calls and not any(m.busy() for m in self._members):
                    if not self._members:
                        self._thread = None
                        return
                    self._wake.wait()
            self._run_calls()
            for member in tuple(self._members):
                if member.busy():
                    member.step()
                # Between any two steps, so that a newcomer waits for one step and not for a round of all members.
                self._run_calls()

    def _run_calls(self) -> None:
        while self._calls:
            call, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
