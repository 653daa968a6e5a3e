"""Ray Serve's echo for `bench.gateway`, run by the peers' own Python: it answers a chat with its own words."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import ray
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=256)
class Echo:
    """A handler that does nothing."""

    async def __call__(self, request: Any) -> dict[str, Any]:
        """One chat."""
        said = await request.json()
        message = {"role": "assistant", "content": said["messages"][-1]["content"]}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": said["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
        }


ray.init(include_dashboard=False, configure_logging=False, num_cpus=2)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Echo.bind(), route_prefix="/v1/chat/completions")  # type: ignore[attr-defined]
print("echo is up", flush=True)
signal.pause()
