"""`modelnet account`, `accounts`, `credit`, `limit`: money as a person sees it, on a network that `up` runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis import Redis

from tests.cli.conftest import Run


def shown(modelnet: Run, name: str) -> dict[str, Any]:
    """An account as JSON."""
    done = modelnet("account", name, "--json")
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def until_settled(network: dict[str, str], name: str) -> None:
    """Wait until an account's statement has a payment: the ledger worker follows the journal in its own time."""
    with Redis.from_url(network["MODELNET_REDIS_URL"], decode_responses=True, protocol=2) as redis:
        key, last = f"modelnet:{{ledger}}:statement:{name}", "0"
        while True:
            ((_, entries),) = redis.xread({key: last}, block=20_000)
            if any(fields["kind"] == "payment" for _, fields in entries):
                return
            last = entries[-1][0]


def submit(modelnet: Run, tenant: str, budget: int) -> dict[str, Any]:
    """A sum for a tenant; its Final."""
    args = ("--input", '{"values": ["1", "2"]}', "--tenant", tenant, "--budget", str(budget), "--json")
    done = modelnet("submit", "math.sum", *args)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["kind"] == "final"
    return found


def test_a_tenant_pays_the_price_from_its_account(modelnet: Run, network: dict[str, str]) -> None:
    given = modelnet("credit", "payer", "5000", "--id", "first", "--json")
    assert json.loads(given.stdout) == {"account": "payer", "amount": 5_000, "id": "first", "balance": 5_000}
    assert modelnet("credit", "payer", "5000", "--id", "first").stdout == "payer has 5000 micro-credits (grant first)\n"
    final = submit(modelnet, "payer", 1_000)
    assert final["status"] == "completed"
    assert final["held"] == 1_000
    until_settled(network, "payer")
    found = shown(modelnet, "payer")
    assert found["balance"] == 5_000 - final["price"]
    assert (found["held"], found["holds"], found["metered"]) == (0, 0, True)
    paid, granted = found["entries"]
    assert (paid["kind"], paid["amount"], paid["other"]) == ("payment", -final["price"], final["owner"])
    assert paid["task"] == final["task"]
    assert (granted["kind"], granted["other"]) == ("grant", "first")
    text = modelnet("account", "payer").stdout
    assert f"balance   {5_000 - final['price']}" in text
    assert "payment" in text
    assert shown(modelnet, final["owner"])["metered"] is False
    listed = modelnet("accounts")
    assert "payer" in listed.stdout
    assert "the books balance" in listed.stderr
    rows = [json.loads(line) for line in modelnet("accounts", "--json").stdout.splitlines()]
    assert {row["account"] for row in rows} >= {"payer", final["owner"]}


def test_without_money_one_clear_error(modelnet: Run) -> None:
    assert modelnet("credit", "poor", "10").returncode == 0
    final = submit(modelnet, "poor", 1_000)
    assert final["error"]["code"] == "no_funds"
    assert "modelnet credit poor 990" in final["error"]["message"]
    taken = modelnet("credit", "poor", "11", "--take")
    assert taken.returncode == 1
    assert "[no_funds]" in taken.stderr
    assert modelnet("credit", "poor", "10", "--take").stdout.startswith("poor has 0")
    assert modelnet("limit", "poor", "--free").stdout == "poor is free\n"
    assert submit(modelnet, "poor", 1_000)["held"] is None


def test_a_limit_holds(modelnet: Run) -> None:
    assert modelnet("credit", "thrifty", "100000").returncode == 0
    limited = modelnet("limit", "thrifty", "--per-hour", "500", "--per-day", "900")
    assert limited.stdout == "thrifty is charged, at most 500 per hour, at most 900 per day\n"
    assert submit(modelnet, "thrifty", 501)["error"]["code"] == "over_limit"
    assert submit(modelnet, "thrifty", 500)["status"] == "completed"
    found = shown(modelnet, "thrifty")
    assert (found["per_hour"], found["per_day"]) == (500, 900)
    assert modelnet("limit", "thrifty", "--none").stdout == "thrifty is charged, without limit\n"
    assert shown(modelnet, "thrifty")["per_day"] is None


def test_an_owner_names_who_may_put_up_its_money(modelnet: Run) -> None:
    assert modelnet("deposits", "mill").stdout == "no worker may put up money of mill\n"
    allowed = modelnet("deposits", "mill", "grinder", "--most", "500")
    assert allowed.stdout == "grinder may put up 500 micro-credits of mill for one task\n"
    listed = json.loads(modelnet("deposits", "mill", "--json").stdout)
    assert listed == {"account": "mill", "depositors": {"grinder": 500}}
    assert modelnet("deposits", "mill", "grinder", "--none").stdout == "no worker may put up money of mill\n"


@pytest.mark.parametrize(
    ("args", "code", "tells"),
    [
        (["account", "nobody"], 1, "[unknown_account]"),
        (["account", "no.body"], 2, "no account name"),
        (["credit", "t"], 2, "AMOUNT"),
        (["credit", "t", "1.5"], 2, "AMOUNT"),
        (["credit", "t", "9007199254740992"], 2, "more than can be counted"),
        (["credit", "t", "1", "--id", "a b"], 2, "is no id"),
        (["limit", "t"], 2, "--per-hour"),
        (["deposits", "t", "w"], 2, "--most"),
        (["deposits", "t", "--most", "5"], 2, "--most"),
        (["deposits", "t", "w", "--most", "5", "--none"], 2, "--most"),
        (["deposits", "t", "w.x", "--none"], 2, "is no worker"),
        (["limit", "t", "--none", "--per-day", "1"], 2, "--per-hour"),
    ],
)
def test_mistakes_are_told(modelnet: Run, args: list[str], code: int, tells: str) -> None:
    done = modelnet(*args)
    assert (done.returncode, done.stdout) == (code, "")
    assert tells in done.stderr


def test_a_grant_is_not_another(modelnet: Run) -> None:
    assert modelnet("credit", "twice", "10", "--id", "x").returncode == 0
    other = modelnet("credit", "twice", "20", "--id", "x", "--json")
    assert other.returncode == 1
    assert json.loads(other.stdout)["error"]["code"] == "grant_conflict"


def test_without_redis_the_commands_say_so(modelnet: Run) -> None:
    away = {"MODELNET_REDIS_URL": "redis://127.0.0.1:1/0"}
    for args in (["account", "t"], ["accounts"], ["credit", "t", "1"], ["limit", "t", "--none"], ["deposits", "t"]):
        done = modelnet(*args, env=away)
        assert done.returncode == 1
        assert "[ledger_away]" in done.stderr


def test_without_nats_a_credit_stands_and_says_what_is_missing(modelnet: Run) -> None:
    done = modelnet("credit", "offline", "5", env={"MODELNET_URL": "nats://127.0.0.1:1"})
    assert done.returncode == 1
    assert "negotiators do not know yet" in done.stderr
    assert shown(modelnet, "offline")["balance"] == 5
