"""The console's room: what the page is served, who sees what, and that nobody who looks is a burden."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import pytest_asyncio

from modelnet.bus.deadletters import DeadLetters
from modelnet.bus.embedded import EmbeddedRedis
from modelnet.store.ledger import Ledger
from modelnet.store.tenants import Tenants
from tests.gateway.doors import Gateway
from tests.network.stage import PATIENCE_S, Network
from workers.gateway.console import live
from workers.gateway.console.audience import NOBODY
from workers.gateway.keys import Keys
from workers.gateway.lobby import Lobby

pytestmark = pytest.mark.asyncio(loop_scope="module")

Frame = dict[str, Any]
HOSTILE = "<script>alert('hostile')</script>"


@asynccontextmanager
async def frames(http: httpx.AsyncClient, path: str = "/console/api/live") -> AsyncIterator[AsyncIterator[Frame]]:
    """The frames of a live picture, as they come."""
    async with asyncio.timeout(PATIENCE_S), http.stream("GET", path) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def read() -> AsyncIterator[Frame]:
            async for event, data in told(answer):
                if event == "frame":
                    yield data

        yield read()


async def told(answer: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Server-sent events."""
    event = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield event, json.loads(line.removeprefix("data: "))


async def find(coming: AsyncIterator[Frame], table: str, wanted: Callable[[Any], bool]) -> Any:
    """The first row that fits."""
    async for frame in coming:
        for row in frame[table]["put"]:
            if wanted(row):
                return row
    raise AssertionError("the frames ended")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(network: Network) -> Any:
    """One that answers, streams, fails, and has a hostile way with words."""
    worker = network.worker("console-worker", software=HOSTILE, labels={"zone": HOSTILE})
    gate = asyncio.Event()

    @worker.capability("show.text", contract={"input": {"type": "object"}, "output": {"type": "object"}}, price=3)
    async def text(ctx: Any, input: Any) -> AsyncIterator[str]:
        yield "one "
        if input.get("wait"):
            await gate.wait()
        yield HOSTILE

    @worker.capability("show.fail", price=3)
    async def fail(ctx: Any, input: Any) -> Any:
        raise ValueError(HOSTILE)

    @worker.capability("show.large", price=3)
    async def large(ctx: Any, input: Any) -> Any:
        return {"text": "x" * 100_000}

    await network.join(worker)
    worker.gate = gate  # type: ignore[attr-defined]
    return worker


async def submit(http: httpx.AsyncClient, capability: str, **given: Any) -> str:
    """Submit through the console; the task's path."""
    answer = await http.post("/console/api/tasks", json={"capability": capability, "input": {}, **given})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    return f"/console/api/tasks/{told['tenant']}/{told['task']}"


async def whole_stream(http: httpx.AsyncClient, path: str) -> tuple[str, dict[str, Any]]:
    """A task's text and Final, as its stream tells them."""
    text = ""
    async with asyncio.timeout(PATIENCE_S), http.stream("GET", f"{path}/stream") as answer:
        async for event, data in told(answer):
            if event == "text":
                text += data["text"]
            if event == "final":
                return text, data
    raise AssertionError("no final")


async def test_the_page_may_run_nothing_but_its_own_files(http: httpx.AsyncClient) -> None:
    page = await http.get("/console")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert "style=" not in page.text
    for name in ("app.js", "style.css", "vendor/htm-preact.js", "vendor/inter.woff2", "icon.svg"):
        file = await http.get(f"/console/static/{name}")
        assert file.status_code == 200
        again = await http.get(f"/console/static/{name}", headers={"if-none-match": file.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert (await http.get("/")).headers["location"] == "/console"


@pytest.mark.parametrize("name", ["nothing.js", "../room.py", "%2e%2e/room.py", "vendor/", "..%2froom.py"])
async def test_nothing_else_is_served(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/console/static/{name}")).status_code in (404, 405)


async def test_a_picture_is_first_whole_and_then_what_changes(http: httpx.AsyncClient, worker: Any) -> None:
    async with frames(http) as coming:
        first = await anext(coming)
        assert first["whole"]
        row = await find(coming, "workers", lambda row: row["id"] == "console-worker")
        assert (row["software"], row["labels"]) == (HOSTILE, {"zone": HOSTILE})
        path = await submit(http, "show.text")
        task = path.rpartition("/")[2]
        ended = await find(coming, "tasks", lambda row: row["task"] == task and row["status"] == "completed")
        assert (ended["worker"], ended["capability"]) == ("console-worker", "show.text")
        frame = await anext(coming)
        assert not frame["whole"]
        assert len(json.dumps(frame)) < 16_000


async def test_a_tasks_text_comes_while_it_is_made_and_again_from_its_start(
    http: httpx.AsyncClient, worker: Any
) -> None:
    worker.gate.clear()
    path = await submit(http, "show.text", input={"wait": True})
    async with asyncio.timeout(PATIENCE_S), http.stream("GET", f"{path}/stream") as answer:
        async for event, data in told(answer):
            if event == "text" and not worker.gate.is_set():
                assert data["text"] == "one "
                worker.gate.set()
            if event == "final":
                assert data["output"] == {"text": "one " + HOSTILE}
                break
    text, final = await whole_stream(http, path)
    assert (text, final["status"]) == ("one " + HOSTILE, "completed")
    record = (await http.get(path)).json()
    assert record["final"]["worker"] == "console-worker"
    assert record["timeline"][0]["event"] == "submitted"
    assert record["auctions"][0]["why"]


async def test_a_composite_is_a_tree(http: httpx.AsyncClient, worker: Any, network: Network) -> None:
    second = network.worker("console-second", owner="another")

    @second.capability("show.text", contract={"input": {"type": "object"}, "output": {"type": "object"}}, price=3)
    async def text(ctx: Any, input: Any) -> Any:
        return {"text": "one " + HOSTILE}

    await network.join(second)
    async with asyncio.timeout(PATIENCE_S):
        asked = 0
        while asked < 2:  # until the negotiator knows both
            path = await submit(http, "show.text")
            await whole_stream(http, path)
            asked = (await http.get(path)).json()["auctions"][0]["asked"]
    path = await submit(http, "show.text", strategy="race")
    await whole_stream(http, path)
    record = (await http.get(path)).json()
    assert [part["task"].rpartition("-")[2] for part in record["parts"]] == ["part1", "part2"]
    await network.stop(second)


async def test_a_large_output_is_told_of_and_not_sent(http: httpx.AsyncClient, worker: Any) -> None:
    path = await submit(http, "show.large")
    _, final = await whole_stream(http, path)
    assert (final["output"], final["output_bytes"] > 100_000) == (None, True)
    assert (await http.get(path)).json()["final"]["output"] is None


async def test_a_task_is_cancelled(http: httpx.AsyncClient, worker: Any) -> None:
    worker.gate.clear()
    path = await submit(http, "show.text", input={"wait": True})
    assert (await http.post(f"{path}/cancel", json={})).json()["cancelled"] is True
    _, final = await whole_stream(http, path)
    worker.gate.set()
    assert final["status"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"capability": "show.text", "input": {}, "nonsense": 1}, "malformed"),
        ({"input": {}}, "malformed"),
        ({"capability": "No Capability", "input": {}}, "malformed"),
        ({"capability": "show.text", "input": [1]}, "malformed"),
        ({"capability": "show.text", "input": {}, "budget": -1}, "malformed"),
        ([], "malformed"),
    ],
    ids=str,
)
async def test_what_is_wrong_with_a_task_is_told(http: httpx.AsyncClient, body: Any, code: str) -> None:
    answer = await http.post("/console/api/tasks", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_what_a_form_of_another_site_can_send_changes_nothing(http: httpx.AsyncClient, kind: str) -> None:
    body = b'{"capability": "show.text", "input": {}}'
    answer = await http.post("/console/api/tasks", content=body, headers={"content-type": kind})
    assert answer.status_code == 415


async def test_an_unknown_task_is_said_to_be(http: httpx.AsyncClient) -> None:
    answer = await http.get("/console/api/tasks/default/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_task")


async def test_contracts_are_what_forms_are_made_of(http: httpx.AsyncClient, worker: Any) -> None:
    found = {one["capability"]: one for one in (await http.get("/console/api/contracts")).json()}
    assert (found["show.text"]["workers"], found["show.text"]["input"]) == (1, {"type": "object"})


async def test_a_dead_letter_is_listed_shown_tried_again_and_dropped(
    http: httpx.AsyncClient, worker: Any, network: Network
) -> None:
    async def listed() -> dict[int, Any]:
        return {one["number"]: one for one in (await http.get("/console/api/letters")).json()}

    known = set(await listed())
    await whole_stream(http, await submit(http, "show.fail"))
    (number,) = set(await listed()) - known
    shown = (await http.get(f"/console/api/letters/{number}")).json()
    assert HOSTILE in shown["reason"]
    assert json.loads(shown["body"])["capability"] == "show.fail"
    again = (await http.post(f"/console/api/letters/{number}/retry", json={})).json()
    await whole_stream(http, f"/console/api/tasks/{again['tenant']}/{again['task']}")
    (other,) = set(await listed()) - known
    assert (await http.post(f"/console/api/letters/{other}/drop", json={})).json() == {"number": other, "dropped": True}
    assert (await http.get(f"/console/api/letters/{other}")).status_code == 404
    await network.bus.request("dlq.garbage", b"\xff\xfe", timeout=5)
    (raw,) = set(await listed()) - known
    assert (await http.get(f"/console/api/letters/{raw}")).json()["body_hex"] == "fffe"
    refused = await http.post(f"/console/api/letters/{raw}/retry", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "cannot_retry")
    await DeadLetters(network.bus).drop(raw)


async def test_without_redis_the_ledger_says_so_and_all_else_goes_on(http: httpx.AsyncClient, worker: Any) -> None:
    async with frames(http) as coming:
        async for frame in coming:
            if {"ledger", "reputation"} <= set(frame["head"]["notes"]) and frame["head"]["workers"]:
                break
    assert (await http.get("/console/api/accounts/acme")).status_code == 503


async def test_whoever_does_not_read_holds_up_nobody(http: httpx.AsyncClient, gateway: Gateway, worker: Any) -> None:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1)
    writer.write(b"GET /console/api/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await writer.drain()
    try:
        async with frames(http) as coming:
            await anext(coming)
            task = (await submit(http, "show.text")).rpartition("/")[2]
            await find(coming, "tasks", lambda row: row["task"] == task)
    finally:
        writer.close()


async def test_a_stream_ends_when_the_gateway_closes(gateway: Gateway) -> None:
    other = Gateway(gateway.config)
    async with httpx.AsyncClient(base_url=other.url, timeout=30) as http:
        await other.__aenter__()
        async with http.stream("GET", "/console/api/live") as answer:
            events = told(answer)
            assert (await anext(events))[0] == "frame"
            closing = asyncio.create_task(other.__aexit__())
            assert [event async for event, _ in events][-1] == "closing"
        await asyncio.wait_for(closing, PATIENCE_S)


async def test_a_tenant_sees_its_own_and_others_only_that_they_are_there(
    gateway: Gateway, worker: Any, redis_server: EmbeddedRedis
) -> None:
    async with Tenants(redis_server.url) as tenants, Ledger(redis_server.url) as ledger:
        for name in ("mine", "theirs"):
            await tenants.create(name)
            await ledger.grant(name, 1000, f"grant-{name}")
        _, key = await tenants.add_key("mine")
        _, their_key = await tenants.add_key("theirs")
    shut = Gateway(gateway.config, gateway_keys="required", redis_url=redis_server.url)
    async with (
        shut,
        httpx.AsyncClient(base_url=shut.url, timeout=30) as nobody,
        httpx.AsyncClient(base_url=shut.url, timeout=30, headers={"authorization": f"Bearer {key}"}) as mine,
        httpx.AsyncClient(base_url=shut.url, timeout=30, headers={"authorization": f"Bearer {their_key}"}) as theirs,
    ):
        assert (await nobody.get("/console")).status_code == 200
        for path in ("/", "/console/"):
            assert (await nobody.get(path)).headers["location"] == "/console"
        for path in ("api/me", "api/live", "api/letters", "api/contracts", "api/accounts/mine"):
            assert (await nobody.get(f"/console/{path}")).status_code == 401
        assert (await nobody.post("/console/api/tasks", json={})).status_code == 401
        assert (await mine.get("/console/api/me")).json() == {"tenant": "mine", "operator": False, "keys": True}
        async with frames(mine) as my_frames, frames(nobody, "/console/watch") as anybodys:
            await anext(my_frames)
            await anext(anybodys)
            path = await submit(theirs, "show.text")
            task = path.rpartition("/")[2]
            for coming in (my_frames, anybodys):
                row = await find(coming, "auctions", lambda row: row["capability"] == "show.text")
                assert (row["tenant"], row["winner"]) == (None, "console-worker")
                assert task not in json.dumps(row)
            my_own = (await submit(mine, "show.text")).rpartition("/")[2]
            assert (await find(my_frames, "tasks", lambda row: row["task"] == my_own))["tenant"] == "mine"
            async for frame in my_frames:
                assert frame["ledger"] is None
                break
        assert (await mine.get(path)).status_code == 404
        assert (await mine.get(f"{path}/stream")).status_code == 404
        assert (await mine.post(f"{path}/cancel", json={})).status_code == 404
        assert (await mine.get("/console/api/accounts/theirs")).status_code == 403
        assert (await mine.get("/console/api/accounts/mine")).json()["balance"] == 1000
        await whole_stream(theirs, await submit(theirs, "show.fail"))
        (letter,) = (await theirs.get("/console/api/letters")).json()
        assert (await mine.get("/console/api/letters")).json() == []
        assert (await mine.get(f"/console/api/letters/{letter['number']}")).status_code == 404
        assert (await mine.post(f"/console/api/letters/{letter['number']}/drop", json={})).status_code == 404


async def test_nobody_watches_once_nobody_looks(
    gateway: Gateway, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_LINGER_S", 0.0)
    picture = live.Picture(Lobby(network.config, network.client, Keys(Tenants(network.config.redis))))
    for _ in range(2):
        coming = picture.frames(NOBODY)
        assert (await anext(coming)).startswith(b"event: frame")
        assert picture.watching
        await coming.aclose()  # type: ignore[attr-defined]
        assert picture._leaving is not None
        await asyncio.wait_for(picture._leaving, PATIENCE_S)
        assert not picture.watching
    await picture.close()
