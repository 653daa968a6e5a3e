"""What a network leaves of an engine's tokens when many streams run at once: vLLM's AsyncLLM asked directly in its own
process, `vllm serve` over HTTP, and modelnet. Made for a GPU; runs on a CPU with the smallest model.

    python -m bench.vllm_streams [--model llama-1b] [--streams 1 64 256 1024] [--each 6 4 3 2] [--rounds 3]
                                 [--minutes 4] [--write]

Closed loop: each stream asks `--each` times, one after another, for answers of half to one and a half times so many
tokens, so that streams do not keep step. The model has the shape of a real one and random weights that vLLM makes
itself; its tokenizer, of as many tokens, is made here, so nothing is downloaded. The engines have the same options and
stand beside one another on the same GPU; only one side plays at a time. HTTP and bus are asked by several client
processes, so that no client is what is measured. `joined` lets vLLM tell of as many tokens at once as a modelnet worker
asks it to at most.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import uvloop
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import modelnet
from bench.conversations import words
from bench.vllm_sides import CACHE, Ask, Network, http, network, over_bus, over_http, serve
from modelnet.engines.vllm_requests import MOST_TOKENS_APART
from modelnet.engines.vllm_setup import engine_options, has_gpu, prepare_environment

__all__ = ["main"]

RESULTS = Path(__file__).with_name("results")
PROMPT_BYTES = 300
CLIENTS = max(1, min(4, (os.cpu_count() or 1) // 3))
SIDES = ("direct", "direct, joined", "vllm serve", "modelnet")
CORES = "worker's cores"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Model:
    """A shape, and what an engine needs for it."""

    config: dict[str, Any]
    cache_mib: int
    share: float = 0.3
    """Of the GPU's memory, for weights, cache and all else; three engines stand on it."""


def _llama(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, head_dim: int, vocab: int
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def _qwen(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, Any]:
    shape = _llama(hidden, inner, layers, heads, kv_heads, hidden // heads, vocab)
    return {**shape, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False}


MODELS = {
    "tiny": Model(_llama(256, 768, 4, 4, 2, 64, 4096), 64),
    # Llama 3.2 1B and Qwen 2.5 7B: https://huggingface.co/meta-llama/Llama-3.2-1B, …/Qwen/Qwen2.5-7B
    "llama-1b": Model(_llama(2048, 8192, 16, 32, 8, 64, 128_256), 18 * 1024, 0.25),
    "qwen-7b": Model(_qwen(3584, 18_944, 28, 28, 4, 152_064), 22 * 1024),
}


def write_model(folder: Path, model: Model) -> None:
    """A folder without weights: a configuration, and a tokenizer of all two to four letters that there is room for."""
    folder.mkdir()
    vocab: dict[str, int] = {char: n for n, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    letters = "abcdefghijklmnopqrstuvwxyz"
    for length in (2, 3, 4):
        for chars in itertools.product(letters, repeat=length):
            if len(vocab) < model.config["vocab_size"]:
                text = "".join(chars)
                merges.append((text[:-1], text[-1]))
                vocab[text] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config["max_position_embeddings"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "config.json").write_text(json.dumps(model.config))


def options_of(model: Model, most: int) -> dict[str, Any]:
    """vLLM's engine arguments, the same for all sides."""
    options: dict[str, Any] = {"load_format": "dummy", "max_model_len": 2048, "max_num_seqs": most}
    options["kv_cache_memory_bytes"] = model.cache_mib * _MIB
    if has_gpu():
        options |= {"gpu_memory_utilization": model.share, "max_cudagraph_capture_size": most}
    return options


# ---------------------------------------------------------------------- a process that asks


@dataclass(frozen=True, slots=True)
class Work:
    """What one process asks for."""

    streams: int
    each: int
    tokens: int
    seed: str
    apart: int = 1
    """Tokens that vLLM tells of together, where it is asked directly."""


@dataclass(frozen=True, slots=True)
class Answer:
    """When it was asked for, and when its tokens came: on time.perf_counter, which is one clock for all processes."""

    asked: float
    first: float
    last: float
    tokens: int


async def play(ask: Ask, work: Work) -> list[Answer]:
    """All streams at once."""

    async def stream(number: int) -> list[Answer]:
        chance, found = random.Random(f"{work.seed} {number}"), []
        for turn in range(work.each):
            prompt = f"{work.seed} {number} {turn} {words(chance, PROMPT_BYTES)}"
            tokens = chance.randint(work.tokens // 2, work.tokens * 3 // 2)
            asked = time.perf_counter()
            found.append(Answer(asked, *await ask(prompt, tokens)))
        return found

    return [answer for answers in await asyncio.gather(*map(stream, range(work.streams))) for answer in answers]


class Player:
    """A child that asks one side, told by lines of JSON what to play."""

    def __init__(self, side: str, where: str, log: Path) -> None:
        """`where`: the model's folder or the address. `log`: for what it has to say of itself."""
        self._side, self._log = side, log
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.vllm_streams", "--play", side, "--where", where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=os.environ | {CACHE: str(log.with_suffix(""))},
        )

    async def ready(self) -> Self:
        """Once it can be told what to play."""
        await asyncio.to_thread(self._read)
        return self

    async def play(self, work: Work) -> list[Answer]:
        """Play it."""
        assert self._child.stdin is not None
        fields = {name: getattr(work, name) for name in Work.__slots__}
        self._child.stdin.write(json.dumps(fields) + "\n")
        self._child.stdin.flush()
        return [Answer(*one) for one in json.loads(await asyncio.to_thread(self._read))]

    def close(self) -> None:
        """End the process, and those that it started."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(30)
        self._child.kill()
        self._child.wait()

    def _read(self) -> str:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("player: "):
                return line.removeprefix("player: ")
        raise SystemExit(f"the process that asks {self._side} ended:\n{self._log.read_text()[-3000:]}")


@contextlib.asynccontextmanager
async def asking(side: str, where: str, options: dict[str, Any]) -> AsyncIterator[Any]:
    """What a child asks: a function of its work."""
    if side == "direct":
        prepare_environment(where, in_process=False)
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(disable_log_stats=True, **engine_options(where, options))
        llm = AsyncLLM.from_engine_args(arguments)
        tokenizer, numbers = llm.renderer.get_tokenizer(), itertools.count()

        def asker(work: Work) -> Ask:
            kind = RequestOutputKind.DELTA

            async def ask(prompt: str, tokens: int) -> tuple[float, float, int]:
                first, last, counted = 0.0, 0.0, 0
                params = SamplingParams(max_tokens=tokens, temperature=0, output_kind=kind, stream_interval=work.apart)
                rendered = {"type": "token", "prompt_token_ids": tokenizer.encode(prompt)}
                async for output in llm.generate(rendered, params, str(next(numbers))):
                    last = time.perf_counter()
                    first = first or last
                    counted += len(output.outputs[0].token_ids)
                return first, last, counted

            return ask

        yield asker
        llm.shutdown()
    elif side == "vllm serve":
        async with http() as session:
            yield lambda work: over_http(session, where)
    else:
        async with modelnet.connect(where) as net:
            yield lambda work: over_bus(net)


async def child(side: str, where: str) -> None:
    """The other end of a `Player`."""
    options = json.loads(os.environ.get("BENCH_OPTIONS", "{}"))
    async with asking(side, where, options) as asker:
        gc.collect()  # as modelnet's processes do
        gc.freeze()
        gc.set_threshold(20_000, 50, 50)
        sys.stdout.write("player: ready\n")
        sys.stdout.flush()
        while line := await asyncio.to_thread(sys.stdin.readline):
            work = Work(**json.loads(line))
            answers = [(one.asked, one.first, one.last, one.tokens) for one in await play(asker(work), work)]
            sys.stdout.write(f"player: {json.dumps(answers)}\n")
            sys.stdout.flush()


# ---------------------------------------------------------------------- the run


def summary(answers: list[Answer], cpu_s: float | None) -> dict[str, float | None]:
    """Tokens a second from the first request to the last token; times in ms; cores of the worker's process."""
    began, ended = min(one.asked for one in answers), max(one.last for one in answers)
    first = sorted((one.first - one.asked) * 1e3 for one in answers)
    gaps = sorted((one.last - one.first) * 1e3 / (one.tokens - 1) for one in answers if one.tokens > 1)
    return {
        "tok/s": sum(one.tokens for one in answers) / (ended - began),
        "TTFT p50": first[round((len(first) - 1) * 0.5)],
        "TTFT p99": first[round((len(first) - 1) * 0.99)],
        "token p50": gaps[round((len(gaps) - 1) * 0.5)],
        "token p99": gaps[round((len(gaps) - 1) * 0.99)],
        CORES: None if cpu_s is None else cpu_s / (ended - began),
    }


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Side:
    """Who asks it, and the worker that is asked."""

    players: list[Player]
    apart: int = 1
    network: Network | None = None

    async def play(self, streams: int, each: int, tokens: int, seed: str) -> dict[str, float | None]:
        """The streams, dealt to the players."""
        shares = [len(range(n, streams, len(self.players))) for n in range(len(self.players))]
        before = cpu_s(self.network.worker.pid) if self.network is not None else None
        played = await asyncio.gather(
            *(
                player.play(Work(share, each, tokens, f"{seed} {n}", self.apart))
                for n, (player, share) in enumerate(zip(self.players, shares, strict=True))
                if share
            )
        )
        used = cpu_s(self.network.worker.pid) - before if self.network is not None and before is not None else None
        return summary([answer for answers in played for answer in answers], used)


Measured = dict[str, dict[int, list[dict[str, float | None]]]]
"""By side and streams: a summary for each round."""


async def run(kept: Path, args: argparse.Namespace) -> Measured:
    """All sides, round by round; what was measured is printed as it comes."""
    model, most = MODELS[args.model], max(args.streams)
    folder, options = kept / args.model, options_of(model, most)
    write_model(folder, model)
    os.environ["BENCH_OPTIONS"] = json.dumps(options)
    ends = time.monotonic() + args.minutes * 60

    async with contextlib.AsyncExitStack() as up:

        async def players(side: str, where: str, count: int) -> list[Player]:
            found = [Player(side, where, kept / f"{side}-{n}.log") for n in range(count)]
            for player in found:
                up.callback(player.close)
            return [await player.ready() for player in found]

        async def opened(side: str) -> Side:
            if side == "direct":
                return Side(await players(side, str(folder), 1))
            if side == "vllm serve":
                base = await up.enter_async_context(serve(folder, options, cache=kept / side))
                return Side(await players(side, base, CLIENTS))
            net = await up.enter_async_context(network(folder, options, "vllm-async", most, cache=kept / side))
            return Side(await players(side, net.url, CLIENTS), network=net)

        engines = [side for side in args.sides if side != "direct, joined"]
        sides = dict(zip(engines, await asyncio.gather(*map(opened, engines)), strict=True))
        if "direct, joined" in args.sides:
            sides["direct, joined"] = Side(sides["direct"].players, MOST_TOKENS_APART)
        say(f"all engines are up: {args.minutes * 60 - (ends - time.monotonic()):.0f} s")
        for name, side in sides.items():
            if name != "direct, joined":
                await side.play(most, 1, 32, "warm-up")
        found: Measured = {side: {streams: [] for streams in args.streams} for side in args.sides}
        names, took = list(args.sides), 0.0
        for number in range(args.rounds):
            began = time.monotonic()
            if number and began + took > ends:
                break
            turn = number % len(names)
            for streams, each in zip(args.streams, args.each, strict=True):
                for name in [*names[turn:], *names[:turn]]:
                    seed = f"{number} {streams} {name}"
                    one = await sides[name].play(streams, each, args.tokens, seed)
                    found[name][streams].append(one)
                    shown = ", ".join(f"{what} {value:.1f}" for what, value in one.items() if value is not None)
                    say(f"round {number + 1}, {streams} streams, {name}: {shown}")
            took = time.monotonic() - began
        return found


def say(line: str) -> None:
    """How far it is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def report(found: Measured, args: argparse.Namespace, device: str) -> str:
    """Medians over rounds, and ratios of neighbours."""
    rounds = len(found["direct"][args.streams[0]])
    lines = [
        f"bench/vllm_streams.py, {datetime.now(UTC).date()}, {device}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {args.model} with random weights",
        f"{rounds} round{'s' if rounds > 1 else ''}; answers of {args.tokens // 2} to {args.tokens * 3 // 2} tokens; "
        "medians over rounds, ratios of one round",
    ]
    names = ("tok/s", "TTFT p50", "TTFT p99", "token p50", "token p99")
    for streams, answers in zip(args.streams, args.each, strict=True):
        head = f"{streams} x {answers}".ljust(16)
        lines += ["", head + "".join(f"{name:>11}" for name in names) + "   tok/s of direct"]
        for side, by_streams in found.items():
            each = by_streams[streams]
            row = "".join(f"{_median(each, name):>11.1f}" for name in names)
            base = found["direct"][streams]
            ratios = [_median([one], "tok/s") / _median([of], "tok/s") for one, of in zip(each, base, strict=True)]
            shown = f"{statistics.median(ratios):.2f} ({', '.join(f'{one:.2f}' for one in ratios)})"
            cores = f"; worker {_median(each, CORES):.2f} cores" if each[0][CORES] is not None else ""
            lines.append(f"{side:<16}{row}   {shown}{cores}")
    return "\n".join(lines)


def _median(summaries: list[dict[str, float | None]], name: str) -> float:
    return statistics.median(one[name] or 0.0 for one in summaries)


def device_name() -> str:
    """Of the GPU, if vLLM uses one."""
    if not has_gpu():
        return "no GPU"
    import torch

    return str(torch.cuda.get_device_name())


def main(arguments: list[str] | None = None) -> None:
    """Run, print, and with --write keep the output and the raw figures under bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama-1b" if has_gpu() else "tiny")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256, 1024] if has_gpu() else [1, 4, 16])
    parser.add_argument("--each", type=int, nargs="+", default=[6, 4, 3, 2] if has_gpu() else [6, 4, 3], help="answers")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=4.0, help="no round begins that would end after them")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="direct is always one")
    parser.add_argument("--play", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--where", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(arguments)
    if args.play:
        uvloop.run(child(args.play, args.where))
        return
    args.sides = [side for side in SIDES if side in {"direct", *args.sides}]
    with tempfile.TemporaryDirectory(prefix="modelnet-streams-") as kept:
        found = asyncio.run(run(Path(kept), args))
    text = report(found, args, device_name())
    sys.stdout.write(text + "\n")
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        RESULTS.joinpath(f"vllm_streams_{args.model}.txt").write_text(text + "\n")
        RESULTS.joinpath(f"vllm_streams_{args.model}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
