"""GET /v1/models: capabilities and models as they are on the network now."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from modelnet.errors import ModelnetError
from workers.gateway.lobby import lobby_of
from workers.gateway.refusal import Refusal, refusal_of

__all__ = ["model", "models"]


async def models(request: Request) -> Response:
    """All of them: each capability that has a contract, and each model that a living worker has."""
    found = await _listed(request)
    return Response(to_json({"object": "list", "data": list(found.values())}), media_type="application/json")


async def model(request: Request) -> Response:
    """One."""
    name = request.path_params["model"]
    found = (await _listed(request)).get(name)
    if found is None:
        raise Refusal(404, "model_not_found", f"{name!r} is neither a capability nor a model of this network")
    return Response(to_json(found), media_type="application/json")


async def _listed(request: Request) -> dict[str, dict[str, Any]]:
    lobby = lobby_of(request)
    try:
        contracts, workers = await asyncio.gather(lobby.directory.contracts(), lobby.net.workers())
    except ModelnetError as error:
        raise refusal_of(error) from None
    serving = defaultdict[str, set[str]](set)
    owners: dict[str, str] = {}
    served = defaultdict[str, set[str]](set)
    for one in workers:
        for card in one.card.capabilities:
            serving[card.pattern].add(one.card.worker)
            if card.model:
                served[card.model].add(card.pattern)
                owners.setdefault(card.model, one.card.owner)
    found = {
        contract.capability: _entry(
            contract.capability,
            "modelnet",
            {
                "kind": "capability",
                "description": contract.description,
                "workers": len(serving[contract.capability]),
                "contract": contract.digest,
            },
        )
        for contract in contracts
    }
    for name, patterns in sorted(served.items()):
        if name not in found:
            found[name] = _entry(name, owners[name], {"kind": "model", "capabilities": sorted(patterns)})
    return found


def _entry(name: str, owner: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner, "modelnet": more}
