"""An answer that another attempt began is gone on with: greedy, it is the one that an uninterrupted run gives."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from modelnet.engines import Chunk, Engine, Prompt, Sampling, continued
from modelnet.engines.continuation import StopFilter
from tests.engines.kinds import KINDS, opened
from tests.engines.models import CHAIN, Folder
from tests.engines.test_contract import FOX, answer, ids_of, text_of

loop = pytest.mark.asyncio(loop_scope="module")

GREEDY = Sampling(temperature=0, max_tokens=24)


WITH_TOKENS = [kind for kind in KINDS if kind.values[0] not in ("function", "openai")]
"""The others go on with text alone: tests/engines/test_openai.py."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WITH_TOKENS)
async def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def random_engine(kind: str, random_folder: Folder) -> AsyncIterator[Engine]:
    async with opened(kind, random_folder) as found:
        await found.engine.start()
        yield found.engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain_engine(kind: str, chain_folder: Folder) -> AsyncIterator[Engine]:
    async with opened(kind, chain_folder) as found:
        await found.engine.start()
        yield found.engine


async def rest(
    engine: Engine, prompt: Prompt, sampling: Sampling, text: str, ids: tuple[int, ...] | None
) -> list[Chunk]:
    return [chunk async for chunk in continued(engine, "rest", prompt, sampling, text, ids)]


@loop
@pytest.mark.parametrize("stop", [(), ("zz", "qu")])
async def test_greedy_goes_on_exactly_wherever_it_was_cut(random_engine: Engine, stop: tuple[str, ...]) -> None:
    engine, sampling = random_engine, Sampling(temperature=0, max_tokens=24, stop=stop)
    whole = await answer(engine, FOX, sampling)
    for cut in range(1, len(whole)):
        before = whole[:cut]
        after = await rest(engine, FOX, sampling, text_of(before), tuple(ids_of(before)))
        assert text_of(before) + text_of(after) == text_of(whole), cut
        assert after[-1].finish_reason == whole[-1].finish_reason
        assert after[-1].completion_tokens <= len(ids_of(whole)) - cut + 3
        assert [chunk.finish_reason for chunk in after[:-1]] == [None] * (len(after) - 1)


@loop
async def test_a_character_is_never_split_over_the_border(chain_engine: Engine) -> None:
    whole = await answer(chain_engine, Prompt(text=CHAIN[0]), GREEDY)
    for cut in range(1, len(whole)):
        before = whole[:cut]
        after = await rest(chain_engine, Prompt(text=CHAIN[0]), GREEDY, text_of(before), tuple(ids_of(before)))
        assert text_of(before) + text_of(after) == text_of(whole)
        assert all("\ufffd" not in chunk.text for chunk in after)


@loop
async def test_a_stop_string_over_the_border_stops_and_is_not_shown(chain_engine: Engine) -> None:
    prompt = Prompt(text=CHAIN[0])
    plain = text_of(await answer(chain_engine, prompt, GREEDY))
    stop = plain[2:4]
    sampling = Sampling(temperature=0, max_tokens=24, stop=(stop,))
    whole = await answer(chain_engine, prompt, sampling)
    assert text_of(whole) == plain[: plain.index(stop)]
    assert whole[-1].finish_reason == "stop"
    for cut in range(1, len(whole)):
        before = whole[:cut]
        after = await rest(chain_engine, prompt, sampling, text_of(before), tuple(ids_of(before)))
        assert text_of(before) + text_of(after) == text_of(whole)
        assert after[-1].finish_reason == "stop"


@loop
async def test_on_another_model_the_text_is_read_and_gone_on_behind(random_engine: Engine) -> None:
    """No ids, or ids that are not of this text: it is tokenized behind the prompt, and counted."""
    for ids in (None, (1, 2, 3)):
        after = await rest(random_engine, FOX, GREEDY, " jumps over", ids)
        again = await rest(random_engine, FOX, GREEDY, " jumps over", None)
        assert text_of(after) == text_of(again)
        read = await random_engine.encode(Prompt(text="the quick brown fox jumps over"))
        assert after[0].prompt_tokens == len(read)
        assert after[-1].completion_tokens == 24 - (len(read) - len(await random_engine.encode(FOX)))


@loop
async def test_what_is_used_up_ends_at_once(random_engine: Engine) -> None:
    ids = ids_of(await answer(random_engine, FOX, GREEDY))
    # Up to a whole character: the ids of a broken one are drawn anew. Which they are depends on the processor.
    while (await random_engine.decode(ids)).endswith("\ufffd"):
        ids.pop()
    sampling = Sampling(temperature=0, max_tokens=len(ids))
    whole = await answer(random_engine, FOX, sampling)
    (last,) = await rest(random_engine, FOX, sampling, text_of(whole), tuple(ids_of(whole)))
    assert (last.text.strip("\ufffd"), last.finish_reason, last.completion_tokens) == ("", "length", 0)


@loop
async def test_the_rest_is_freed_when_nobody_wants_it(random_engine: Engine) -> None:
    chunks = continued(random_engine, "left", FOX, Sampling(temperature=0, max_tokens=64), " jumps", None)
    await anext(chunks)
    await chunks.aclose()
    await random_engine.abort("settle")
    assert random_engine.state().running == 0


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_a_stop_filter_shows_what_stands_before_the_first_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    stop = StopFilter(tuple(stops))
    shown, stopped, at = "", False, 0
    while at < len(text) and not stopped:
        size = data.draw(st.integers(1, 3))
        said, stopped = stop.push(text[at : at + size])
        shown, at = shown + said, at + size
    if not stopped:
        shown += stop.end()
    places = [place for one in stops if (place := text.find(one)) >= 0]
    assert stopped == bool(places)
    if not places:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(one in shown for one in stops)
