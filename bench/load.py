"""vLLM's own load generator for LLM servers, unchanged, against whatever answers at a URL.

    python -m bench.load --base-url "$MODELNET_GATEWAY_URL" --model text.generate --num-prompts 200 --max-concurrency 32

It is `vllm bench serve`, started by its module because the command itself asks for a package named `vllm`, which the
CPU build is not. Defaults here: chat, streaming, random prompts in the words of a specialist's tokenizer. `--help`
lists its options.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

TOKENIZER = Path(__file__).parents[1] / "examples/specialists/models/generalist"
DEFAULTS = {
    "backend": "openai-chat",
    "endpoint": "/v1/chat/completions",
    "dataset_name": "random",
    "random_input_len": 32,
    "random_output_len": 16,
    "tokenizer": str(TOKENIZER),
}

if __name__ == "__main__":
    parser = FlexibleArgumentParser(description=__doc__)
    add_cli_args(parser)
    parser.set_defaults(**DEFAULTS)
    main(parser.parse_args(sys.argv[1:]))
