"""The gateway as a server: whether it lives, whether it is ready, whom it lets in."""

from __future__ import annotations

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from modelnet.errors import ModelnetError
from tests.gateway.doors import Gateway
from workers.gateway import Room, create_app, make_app
from workers.gateway.lobby import tenant_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_it_lives_and_is_ready(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"alive": True}
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)


async def test_what_is_not_there_is_said_in_the_errors_shape(http: httpx.AsyncClient) -> None:
    answer = await http.get("/nowhere")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert (await http.post("/healthz")).status_code == 405


@pytest.mark.parametrize(
    "headers",
    [{"Host": "example.com"}, {"Origin": "https://example.com"}, {"Origin": "null"}, {"Host": "127.evil.example"}],
    ids=str,
)
async def test_without_keys_no_page_of_elsewhere_is_served(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await http.get("/nowhere", headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_refused"


async def test_a_page_of_this_machine_is_served_and_no_other_may_read_it(http: httpx.AsyncClient) -> None:
    answer = await http.get("/nowhere", headers={"Origin": "http://localhost:3000"})
    assert answer.status_code == 404
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_gateway_that_asks_for_keys_serves_nobody_without(gateway: Gateway) -> None:
    async with Gateway(gateway.config, gateway_keys="required") as shut, httpx.AsyncClient(base_url=shut.url) as http:
        refused = await http.get("/anything")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert (await http.get("/healthz")).status_code == 200


async def test_a_room_is_mounted_with_its_public_paths(gateway: Gateway) -> None:
    async def show(request: Request) -> PlainTextResponse:
        return PlainTextResponse(tenant_of(request) if hasattr(request.state, "guest") else "nobody")

    room = Room([Route("/open/{any}", show), Route("/shut", show)], public=("/open/*",))
    config = gateway.config
    for asked, shut in (
        (config, (200, "default")),
        (config.model_copy(update={"gateway_keys": "required"}), (401, "")),
    ):
        app = create_app(asked, rooms=[room])
        async with (
            app.router.lifespan_context(app) as state,
            httpx.AsyncClient(transport=_transport(app, state), base_url="http://localhost") as http,
        ):
            assert (await http.get("/open/page")).text == "nobody"
            answer = await http.get("/shut")
            assert answer.status_code == shut[0]
            assert shut[1] in answer.text


def _transport(app: object, state: object) -> httpx.ASGITransport:
    """With the lifespan's state, which httpx does not carry."""

    async def carried(scope: dict[str, object], receive: object, send: object) -> None:
        await app({**scope, "state": dict(state)}, receive, send)  # type: ignore[operator,call-overload]

    return httpx.ASGITransport(app=carried)  # type: ignore[arg-type]


async def test_a_body_that_is_too_large_is_refused(gateway: Gateway) -> None:
    async with (
        Gateway(gateway.config, gateway_max_body_bytes=2048) as small,
        httpx.AsyncClient(base_url=small.url) as http,
    ):
        answer = await http.post("/anything", content=b"x" * 4096)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


async def test_an_address_that_is_taken_ends_the_start_with_its_reason(gateway: Gateway) -> None:
    app = make_app(gateway.config)
    with pytest.raises(ModelnetError, match="cannot listen"):
        await app.start()
    await app.stop()
