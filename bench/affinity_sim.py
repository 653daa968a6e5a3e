"""Conversations on sixteen simulated vLLM workers: who places them decides what is in whose cache.

What is simulated is the engines: continuous batching in steps, and a prefix cache of token blocks that forgets the
longest unused. The hashes, what workers believe of their caches, what they predict, and the auction are the network's
own code. The policies that need to know the caches read the engines' own; the market never does.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bench.conversations import Conversation, Trace, conversations
from modelnet.contracts import features_of
from modelnet.engines.base import EngineState
from modelnet.engines.prediction import Ask, Predicted, Predictor
from modelnet.engines.prefix_cache import PrefixCache
from modelnet.engines.steps import Pace, StepModel
from modelnet.market import Candidate, ReferencePrices
from modelnet.market.auction import Auction
from modelnet.messages import Bid, Features, Task
from modelnet.prefix import tenant_key

__all__ = ["simulate"]

WORKERS = 16
BLOCK = 16
KV_BLOCKS = 4096
MAX_RUNNING = 32
BYTES_PER_TOKEN = 4
PACE = Pace(base=0.008, per_decode=0.0002, per_prefill=0.0001)
"""A middling GPU with a model of some billions of parameters: 10,000 prompt tokens a second."""
HOP_S = 0.003
"""An auction and an award on the bus, by bench/overhead.py."""

TRACE = Trace(
    conversations=800,
    turns=6,
    systems=40,
    system_bytes=12_000,
    turn_bytes=3000,
    answer_tokens=100,
    arrivals_per_s=4.0,
    think_s=12.0,
)
SCHEMA = {"properties": {"messages": {"type": "array", "x-prefix": 1}, "max_tokens": {"x-public": True}}}


@dataclass(slots=True)
class Turn:
    """One request."""

    conversation: Conversation
    number: int
    tokens: list[tuple[object, int]]
    """Names of its prompt's blocks of tokens."""
    prompt: int
    answer: int
    features: Features
    sent: float = 0.0
    made: int = 0
    cached: int = 0
    first: float = 0.0
    said: Predicted | None = None

    @property
    def name(self) -> str:
        """Of conversation and turn."""
        return f"{self.conversation.number}-{self.number}"


@dataclass(slots=True)
class Engine:
    """One worker: its engine as it is, and what it believes."""

    name: str
    chance: random.Random
    steps: StepModel = field(default_factory=StepModel)
    predictor: Predictor = field(default_factory=Predictor)
    believed: PrefixCache = field(default_factory=PrefixCache)
    blocks: OrderedDict[tuple[object, int], None] = field(default_factory=OrderedDict)
    waiting: deque[Turn] = field(default_factory=deque)
    running: list[Turn] = field(default_factory=list)
    stepping: bool = False

    def state(self) -> EngineState:
        """As vLLM would tell it."""
        held = sum(one.prompt + one.made for one in self.running)
        return EngineState(
            running=len(self.running),
            waiting=len(self.waiting),
            max_running=MAX_RUNNING,
            kv_cache_usage=min(held / (KV_BLOCKS * BLOCK), 1.0),
            kv_cache_tokens=KV_BLOCKS * BLOCK,
            step_times=self.steps,
            prefix_block=BLOCK,
        )

    def hit(self, turn: Turn) -> int:
        """Prompt tokens that are in the cache."""
        found = itertools.takewhile(self.blocks.__contains__, turn.tokens)
        return min(sum(1 for _ in found) * BLOCK, turn.prompt - 1)

    def expect(self, turn: Turn, now: float) -> Predicted | None:
        """What it says of a request."""
        features = turn.features
        ask = Ask(features.prompt_bytes or 0, self.believed.known_bytes(features.prefix), TRACE.answer_tokens * 2)
        return self.predictor.predict(ask, self.state(), now)

    def take(self, turn: Turn, said: Predicted | None, now: float) -> None:
        """A request is given to it."""
        turn.said = said
        ask = said.ask if said is not None else Ask(0, 0, TRACE.answer_tokens)
        self.predictor.begin(turn.name, ask, said, now)
        room = KV_BLOCKS * BLOCK / max(self.predictor.tokens_per_byte, 1e-3)
        size = turn.features.prompt_bytes or 0
        self.believed.put(turn.features.prefix, size, turn.answer * BYTES_PER_TOKEN, room)
        self.waiting.append(turn)

    def step(self) -> tuple[float, list[Turn], list[Turn]]:
        """Seconds of one step, who got a first token in it, and who its last."""
        fresh, prefill = [], 0
        while self.waiting and len(self.running) < MAX_RUNNING:
            turn = self.waiting.popleft()
            turn.cached = self.hit(turn)
            prefill += turn.prompt - turn.cached
            fresh.append(turn)
            self.running.append(turn)
            for block in reversed(turn.tokens):
                self.blocks[block] = None
                self.blocks.move_to_end(block)
            while len(self.blocks) > KV_BLOCKS:
                self.blocks.popitem(last=False)
        decoding = len(self.running) - len(fresh)
        held = sum(one.prompt + one.made for one in self.running)
        seconds = PACE.step_s(decoding, prefill) * self.chance.lognormvariate(0, 0.1)
        self.steps.learn(decoding, prefill, held, seconds)
        over = []
        for turn in list(self.running):
            turn.made += 1
            if turn.made >= turn.answer:
                self.running.remove(turn)
                over.append(turn)
        return seconds, fresh, over


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step that is over."""

    engine: Engine
    fresh: list[Turn]
    over: list[Turn]


Choose = Callable[[list[Engine], Turn, float], tuple[Engine, Predicted | None]]


class Market:
    """The auction, among workers that are alike in price and quality."""

    def __init__(self, *, hashes: bool = True) -> None:
        self._prices, self._hashes = ReferencePrices(), hashes

    def __call__(self, engines: list[Engine], turn: Turn, now: float) -> tuple[Engine, Predicted | None]:
        """The winner, and what it predicted."""
        if not self._hashes:
            turn.features = turn.features.model_copy(update={"prefix": b""})
        said = {one.name: one.expect(turn, now) for one in engines}
        id = f"a{turn.name}"
        candidates = [Candidate(one.name, one.name, "c", 0.9) for one in engines]
        auction = Auction(id, candidates, settled=True, now=now)
        for one in engines:
            found = said[one.name]
            p50_ms, p90_ms = (found.p50_ms, found.p90_ms) if found is not None else (1000.0, 4000.0)
            bid = Bid.model_construct(auction=id, worker=one.name, price=10, p50_ms=p50_ms, p90_ms=p90_ms)
            auction.take(bid, None)
        task = Task.model_construct(
            id=turn.name,
            tenant="t",
            capability="text.generate",
            input={},
            budget=10_000,
            value=None,
            value_of_time=1000.0,
            min_quality=0.0,
            deadline_s=60.0,
        )
        auction.close(task, 60.0, self._prices)
        won = auction.winner()
        if won is None:  # nobody is worth its price by the deadline: in the network it would wait for one who is
            return min(engines, key=lambda one: len(one.running) + len(one.waiting)), None
        return next(one for one in engines if one.name == won[0].worker), said[won[0].worker]


def round_robin() -> Choose:
    """Each in turn."""
    order = itertools.count()
    return lambda engines, turn, now: (engines[next(order) % len(engines)], None)


def least_load() -> Choose:
    """The fewest requests in hand; of equals each in turn."""
    order = itertools.count()

    def choose(engines: list[Engine], turn: Turn, now: float) -> tuple[Engine, None]:
        start = next(order)
        turned = [engines[(start + n) % len(engines)] for n in range(len(engines))]
        return min(turned, key=lambda one: len(one.running) + len(one.waiting)), None

    return choose


def central() -> Choose:
    """A router that knows every cache as it is: most of 3 x the share cached + 2 x the shortness of the queue, as
    llm-d's default profile weighs them."""

    def choose(engines: list[Engine], turn: Turn, now: float) -> tuple[Engine, None]:
        loads = [len(one.running) + len(one.waiting) for one in engines]
        low, high = min(loads), max(loads)

        def score(one: Engine, load: int) -> float:
            short = 1.0 if high == low else (high - load) / (high - low)
            return 3 * one.hit(turn) / turn.prompt + 2 * short

        return max(zip(engines, loads, strict=True), key=lambda pair: score(*pair))[0], None

    return choose


POLICIES: dict[str, Callable[[], Choose]] = {
    "market": Market,
    "market, no hashes": lambda: Market(hashes=False),
    "central index": central,
    "least load": least_load,
    "round robin": round_robin,
}


def turns_of(talk: Conversation, trace: Trace, key: bytes, chance: random.Random) -> list[Turn]:
    """All requests of a conversation, with the answers that it will have had."""
    answers, found, names = list[str](), [], list[tuple[object, int]]()
    size, shared = 0, len(talk.system_text) // BYTES_PER_TOKEN // BLOCK
    for number in range(trace.turns):
        messages = talk.messages(answers)
        features = features_of({"messages": messages, "max_tokens": 2 * trace.answer_tokens}, 0, SCHEMA, key)
        assert features.prompt_bytes is not None
        prompt = features.prompt_bytes // BYTES_PER_TOKEN
        size = prompt // BLOCK
        names = [(("system", talk.system), n) if n < shared else (talk.number, n) for n in range(size)]
        answer = max(int(trace.answer_tokens * chance.lognormvariate(-0.125, 0.5)), 2)
        found.append(Turn(talk, number, names, prompt, min(answer, 2 * trace.answer_tokens), features))
        answers.append(f"{talk.number} {number} " + "x" * (answer * BYTES_PER_TOKEN))
    return found


def play(choose: Choose, trace: Trace, seed: int) -> tuple[float, list[float], float, float]:
    """Hit rate, times to the first token in s, share of turns that moved, and of first tokens within their p90."""
    chance = random.Random(seed)
    engines = [Engine(f"w{n}", random.Random(seed * 100 + n)) for n in range(WORKERS)]
    key = tenant_key(b"s" * 32, "t")
    talks = [turns_of(talk, trace, key, chance) for talk in conversations(trace, seed, "s")]
    homes = dict[int, str]()
    events: list[tuple[float, int, str, object]] = []
    order = itertools.count()
    for turns in talks:
        heapq.heappush(events, (turns[0].conversation.at, next(order), "ask", turns[0]))
    by_number = {turns[0].conversation.number: turns for turns in talks}
    firsts, prompt, cached, moved, count = [], 0, 0, 0, 0
    covered, predicted = 0, 0

    def go(engine: Engine, now: float) -> None:
        if engine.stepping or not (engine.waiting or engine.running):
            return
        engine.stepping = True
        seconds, fresh, over = engine.step()
        heapq.heappush(events, (now + seconds, next(order), "step", Stepped(engine, fresh, over)))

    while events:
        now, _, kind, about = heapq.heappop(events)
        if kind == "ask":
            assert isinstance(about, Turn)
            about.sent = now
            engine, said = choose(engines, about, now)
            number = about.conversation.number
            moved += homes.get(number, engine.name) != engine.name
            homes[number] = engine.name
            engine.take(about, said, now)
            go(engine, now)
            continue
        assert isinstance(about, Stepped)
        engine, fresh, over = about.engine, about.fresh, about.over
        engine.stepping = False
        for turn in fresh:
            turn.first = now
            engine.predictor.first(turn.name, turn.prompt, turn.cached, now)
            if turn.number:  # the first turns warm the caches
                firsts.append(now - turn.sent + HOP_S)
                prompt, cached, count = prompt + turn.prompt, cached + turn.cached, count + 1
            if turn.said is not None and turn.said.first_p90_ms is not None:
                predicted += 1
                covered += (now - turn.sent) * 1e3 <= turn.said.first_p90_ms
        for turn in engine.running:
            engine.predictor.token(turn.name, 1)
        for turn in over:
            engine.predictor.end(turn.name, turn.made, now)
            turns = by_number[turn.conversation.number]
            # Its answer stays in the cache, and belongs to the next turn's prompt.
            if turn.number + 1 < len(turns):
                following = turns[turn.number + 1]
                whole = (turn.prompt + turn.made) // BLOCK
                for block in reversed(following.tokens[:whole]):
                    engine.blocks[block] = None
                    engine.blocks.move_to_end(block)
                think_s = turn.conversation.thinks[turn.number]
                heapq.heappush(events, (now + think_s, next(order), "ask", following))
        go(engine, now)
    return cached / max(prompt, 1), firsts, moved / max(count, 1), covered / max(predicted, 1)


def simulate(seeds: int, *, quick: bool = False) -> str:
    """Play all policies, and make the table."""
    trace = replace(TRACE, conversations=200) if quick else TRACE
    lines = [
        f"bench/affinity.py --simulate: {WORKERS} workers, {seeds} seeds of {trace.conversations} conversations of "
        f"{trace.turns} turns; means over seeds, first turns not counted",
        f"{trace.systems} system prompts of {trace.system_bytes} bytes, turns of {trace.turn_bytes}, caches of "
        f"{KV_BLOCKS * BLOCK} tokens; {trace.arrivals_per_s:.0f} conversations begin in a second",
        "",
        f"{'':<20}{'hit rate':>9}{'mean TTFT ms':>14}{'p50':>8}{'p99':>9}{'turns moved':>13}{'TTFT / market':>15}"
        f"{'first within p90':>18}",
    ]
    played = {name: [play(made(), trace, seed) for seed in range(seeds)] for name, made in POLICIES.items()}
    base = statistics.fmean(statistics.fmean(one[1]) for one in played["market"])
    for name, each in played.items():
        mean = statistics.fmean(statistics.fmean(one[1]) for one in each)
        p50, p99 = (statistics.fmean(sorted(one[1])[int(len(one[1]) * share)] for one in each) for share in (0.5, 0.99))
        within = f"{statistics.fmean(one[3] for one in each):>18.1%}" if name.startswith("market") else ""
        lines.append(
            f"{name:<20}{statistics.fmean(one[0] for one in each):>9.1%}{mean * 1e3:>14.1f}{p50 * 1e3:>8.1f}"
            f"{p99 * 1e3:>9.1f}{statistics.fmean(one[2] for one in each):>13.1%}{mean / base:>15.2f}{within}"
        )
    return "\n".join(lines)
