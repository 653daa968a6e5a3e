"""The network's A2A agent card: every capability that is served now is a skill. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    HTTPAuthSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from a2a.utils.constants import PROTOCOL_VERSION_1_0, TransportProtocol

from modelnet import __version__
from modelnet.messages import Contract

__all__ = ["agent_card"]

MODES = ("text/plain", "application/json")


def agent_card(contracts: Iterable[Contract], url: str, *, keys: bool) -> AgentCard:
    """The card of the agent at `url`, its JSON-RPC endpoint; REST is below it. `keys`: a bearer key is needed."""
    interfaces = [
        AgentInterface(url=url, protocol_binding=binding, protocol_version=PROTOCOL_VERSION_1_0)
        for binding in (TransportProtocol.JSONRPC, TransportProtocol.HTTP_JSON)
    ]
    card = AgentCard(
        name="modelnet",
        description="A network of models and tools: workers bid for every task, and the best answer for the money "
        "wins. Name a skill in the metadata of a message as `skill`; text without one is for text.generate.",
        version=__version__,
        supported_interfaces=interfaces,
        capabilities=AgentCapabilities(streaming=True, push_notifications=False, extended_agent_card=False),
        default_input_modes=MODES,
        default_output_modes=MODES,
        skills=[_skill(contract) for contract in contracts],
    )
    if keys:
        bearer = HTTPAuthSecurityScheme(scheme="Bearer", description="A key of a tenant.")
        card.security_schemes["key"].CopyFrom(SecurityScheme(http_auth_security_scheme=bearer))
        card.security_requirements.append(SecurityRequirement(schemes={"key": StringList()}))
    return card


def _skill(contract: Contract) -> AgentSkill:
    return AgentSkill(
        id=contract.capability,
        name=contract.capability,
        description=contract.description or contract.capability,
        tags=contract.capability.split("."),
        input_modes=MODES,
        output_modes=MODES,
    )
