"""`modelnet tenant`, and the gateway that `up` starts, as a person uses them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from tests.cli.conftest import Run


def models(network: dict[str, str], key: str) -> int:
    """The status that the gateway answers a key with."""
    asked = urllib.request.Request(
        f"{network['MODELNET_GATEWAY_URL']}/v1/models", headers={"Authorization": f"Bearer {key}"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_a_tenant_from_its_first_key_to_its_last(modelnet: Run, network: dict[str, str]) -> None:
    made = modelnet("tenant", "create", "cli-acme", "--requests", "100", "--json")
    assert made.returncode == 0, made.stderr
    first = json.loads(made.stdout)["key"]
    assert models(network, first) == 200
    second = modelnet("tenant", "key", "cli-acme", "--label", "build server")
    assert second.returncode == 0
    assert "not shown again" in second.stderr
    shown = json.loads(modelnet("tenant", "show", "cli-acme", "--json").stdout)
    assert (shown["requests"], shown["tokens"]) == (100, None)
    assert [key["label"] for key in shown["keys"]] == ["", "build server"]
    assert first not in json.dumps(shown)
    assert "build server" in modelnet("tenant", "show", "cli-acme").stdout
    assert modelnet("tenant", "limit", "cli-acme", "--tokens", "5000").stdout.strip() == (
        "cli-acme may ask for 100 requests and 5000 tokens a minute"
    )
    assert "cli-acme" in modelnet("tenant", "list").stdout
    assert modelnet("tenant", "key", "cli-acme", "--drop", shown["keys"][1]["id"]).returncode == 0
    assert modelnet("tenant", "revoke", "cli-acme").returncode == 0
    assert json.loads(modelnet("tenant", "show", "cli-acme", "--json").stdout)["keys"] == []
    assert models(network, second.stdout.strip()) == 401


def test_what_cannot_be_meant_is_said(modelnet: Run) -> None:
    assert modelnet("tenant", "create", "no name").returncode == 2
    assert modelnet("tenant", "limit", "cli-nobody").returncode == 2
    unknown = modelnet("tenant", "key", "cli-nobody", "--json")
    assert unknown.returncode == 1
    assert json.loads(unknown.stdout)["error"]["code"] == "unknown_tenant"
    modelnet("tenant", "create", "cli-twice")
    assert modelnet("tenant", "create", "cli-twice").returncode == 1
