"""vLLM on Ray Serve for `bench.vllm_tax`, run by the peers' own Python: AsyncLLM in a replica, its tokens as they come.

    python ray_vllm.py PORT '{"model": …}'      # vLLM's engine arguments

The way of Ray's and vLLM's own examples; it answers as OpenAI's completions do.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from starlette.responses import StreamingResponse


@serve.deployment(num_replicas=1, max_ongoing_requests=256)
class Model:
    """One engine."""

    def __init__(self, options: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(disable_log_stats=True, **options))
        self._numbers = itertools.count()

    async def __call__(self, request: Any) -> StreamingResponse:
        """One completion."""
        return StreamingResponse(self._events(await request.json()), media_type="text/event-stream")

    async def _events(self, said: dict[str, Any]) -> AsyncIterator[str]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind, tokens = RequestOutputKind.DELTA, 0
        params = SamplingParams(max_tokens=said["max_tokens"], temperature=said["temperature"], output_kind=kind)
        async for output in self._llm.generate(said["prompt"], params, str(next(self._numbers))):
            tokens += len(output.outputs[0].token_ids)
            yield f"data: {json.dumps({'choices': [{'index': 0, 'text': output.outputs[0].text}]})}\n\n"
        yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': tokens}})}\n\n"
        yield "data: [DONE]\n\n"


ray.init(include_dashboard=False, configure_logging=False, num_cpus=2)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Model.bind(json.loads(sys.argv[2])), route_prefix="/v1/completions")  # type: ignore[attr-defined]
print("the model is up", flush=True)
signal.pause()
