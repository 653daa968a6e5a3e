"""What an A2A client is told on the wire of a request that is none: JSON-RPC's codes, and REST's statuses."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.agents.conftest import Door

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("version", "body", "code"),
    [
        ("1.0", "{", -32700),
        ("1.0", "[]", -32600),
        ("1.0", '{"id": 1, "method": "GetTask"}', -32600),
        ("1.0", '{"jsonrpc": "2.0", "id": 1, "method": "NoSuchMethod"}', -32601),
        ("1.0", '{"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": 7}}', -32602),
        ("1.0", '{"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {}}', -32602),
        ("", '{"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": "x"}}', -32009),
        ("2.0", '{"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": "x"}}', -32009),
        ("1.0", '{"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": "x"}}', -32001),
        ("1.0", '{"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": "x.>"}}', -32001),
        ("1.0", '{"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": "x", "tenant": "other"}}', -32602),
    ],
)
async def test_errors_on_the_wire(door: Door, version: str, body: str, code: int) -> None:
    key = await door.key("default")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "A2A-Version": version}
    async with httpx.AsyncClient(headers=headers) as http:
        answer = await http.post(f"{door.url}/a2a", content=body)
    assert json.loads(answer.content)["error"]["code"] == code


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("GET", "tasks/nobody-knows", None, 404, "TASK_NOT_FOUND"),
        ("POST", "tasks/nobody-knows:cancel", None, 404, "TASK_NOT_FOUND"),
        ("POST", "tasks/nobody-knows:subscribe", None, 404, "TASK_NOT_FOUND"),
        ("POST", "message:send", "{}", 400, "INVALID_PARAMS"),
        ("POST", "message:stream", "{}", 400, "INVALID_PARAMS"),
        ("POST", "message:send", "{", 400, None),
        ("GET", "tasks?pageSize=1000", None, 400, "INVALID_PARAMS"),
        ("GET", "extendedAgentCard", None, 400, "UNSUPPORTED_OPERATION"),
        ("GET", "tasks/x/pushNotificationConfigs", None, 400, "PUSH_NOTIFICATION_NOT_SUPPORTED"),
        ("DELETE", "tasks/x/pushNotificationConfigs/y", None, 400, "PUSH_NOTIFICATION_NOT_SUPPORTED"),
        ("GET", "other-tenant/tasks/x", None, 400, "INVALID_PARAMS"),
    ],
)
async def test_statuses_on_the_wire(
    door: Door, method: str, path: str, body: str | None, status: int, reason: str | None
) -> None:
    key = await door.key("default")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "A2A-Version": "1.0"}
    async with httpx.AsyncClient(headers=headers) as http:
        answer = await http.request(method, f"{door.url}/a2a/{path}", content=body)
    assert answer.status_code == status, answer.text
    if reason is not None:
        [info] = [one for one in answer.json()["error"]["details"] if one["@type"].endswith("ErrorInfo")]
        assert info["reason"] == reason
